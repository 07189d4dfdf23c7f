"""Claims judged over seeds: holds, fails or inconclusive.

The seeds of two arms share their data and their first parameters, so the difference is taken seed
by seed; its 95% bootstrap interval is what a claim's relation is read against.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rewardjax.evaluation.bootstrap import Interval, bootstrap_interval, paired_bootstrap
from rewardjax.experiment import Claim

SEEDS_TO_RECORD = 5
# A mirrored relation is judged on the mirrored interval.
MIRRORED = {"<": ">", "<=": ">="}

Seeds = Sequence[float | int | None]


class Verdict(NamedTuple):
    """What became of a claim.

    Attributes:
      difference: mean over seeds of arm minus baseline; None where it could not be taken.
      low: lower end of its 95% interval, or None.
      high: upper end of its 95% interval, or None.
      verdict: "holds", "fails" or "inconclusive".
      note: what a reader should know of how it was judged; empty if nothing.
    """

    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    note: str


def interval(values: Seeds) -> Interval:
    """Mean, low and high of the 95% bootstrap interval of one metric over seeds.

    Raises:
      ValueError: no value, or one that is not finite.
    """
    return bootstrap_interval(np.asarray(values, np.float64))


def judge(claim: Claim, values: Mapping[str, Mapping[str, Seeds]]) -> Verdict:
    """Judge a claim from `values[arm][metric]`, one number a seed, in the same order in every arm.

    With `[low, high]` the 95% interval of arm minus baseline and `m` the margin:

    | relation | holds                   | fails                     |
    |----------|-------------------------|---------------------------|
    | `>`      | low > m                 | high <= m                 |
    | `>=`     | low >= -m               | high < -m                 |
    | `<`      | high < -m               | low >= -m                 |
    | `<=`     | high <= m               | low > m                   |
    | `~`      | low >= -m and high <= m | low > m or high < -m      |

    and inconclusive otherwise: also from one seed, and where a number is missing (None counts as
    missing) or not finite. Two numbers closer than float32 can tell apart count as equal.
    """
    arms = [name for name in (claim.arm, claim.baseline) if isinstance(name, str)]
    problems = [problem for arm in arms if (problem := _problem(arm, claim.metric, values))]
    if problems:
        return Verdict(None, None, None, "inconclusive", "; ".join(problems))
    ours = np.asarray(values[claim.arm][claim.metric], np.float64)
    if isinstance(claim.baseline, str):
        theirs = np.asarray(values[claim.baseline][claim.metric], np.float64)
    else:
        theirs = np.full(ours.shape, float(claim.baseline))
    seeds, notes = min(ours.size, theirs.size), []
    if ours.size != theirs.size:
        notes.append(
            f"paired the first {seeds} seeds: {claim.arm} has {ours.size}, "
            f"{claim.baseline} has {theirs.size}"
        )
    ours, theirs = ours[:seeds], theirs[:seeds]
    difference, low, high = paired_bootstrap(ours, theirs)
    if seeds == 1:
        notes.append("judged from one seed")
        return Verdict(difference, low, high, "inconclusive", "; ".join(notes))
    if seeds < SEEDS_TO_RECORD:
        notes.append(f"{seeds} seeds; a recorded verdict needs {SEEDS_TO_RECORD}")
    largest = max(float(np.max(np.abs(ours))), float(np.max(np.abs(theirs))))
    resolution = float(np.finfo(np.float32).eps) * largest
    verdict = _read(claim.relation, float(claim.margin), low, high, resolution)
    return Verdict(difference, low, high, verdict, "; ".join(notes))


def _problem(arm: str, metric: str, values: Mapping[str, Mapping[str, Seeds]]) -> str:
    """Why `values[arm][metric]` cannot be judged; empty if it can."""
    if arm not in values:
        return f"arm {arm} was not run"
    numbers = np.asarray(values[arm].get(metric, ()), np.float64)
    if numbers.size == 0:
        return f"{metric} of {arm} is missing"
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        return f"{metric} of {arm} is missing or not finite in {bad.size} of {numbers.size} seeds"
    return ""


def _read(relation: str, margin: float, low: float, high: float, resolution: float) -> str:
    """The verdict of one interval; `resolution` is how far apart two equal numbers may be."""
    if relation in MIRRORED:
        relation, low, high = MIRRORED[relation], -high, -low
    # The one edge that counts as inside from either direction.
    upper, lower = margin + resolution, -margin - resolution
    if relation == ">":
        holds, fails = low > upper, high <= upper
    elif relation == ">=":
        holds, fails = low >= lower, high < lower
    else:
        holds, fails = low >= lower and high <= upper, low > upper or high < lower
    return "holds" if holds else "fails" if fails else "inconclusive"
