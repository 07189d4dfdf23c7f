"""What a run's `summary.json` holds: intervals of what was measured, verdicts on the claims."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rewardjax import verdicts
from rewardjax.experiment import Experiment
from rewardjax.paths import AnyPath

Summary = dict[str, Any]

# What every summary must have to be reported, and the type of each.
REQUIRED: dict[str, type] = {
    "slug": str,
    "family": str,
    "title": str,
    "arxiv": str,
    "scale": str,
    "seeds": list,
    "arms": dict,
    "claims": list,
}
VERDICTS = ("holds", "fails", "inconclusive")


def summarise(
    experiment: Experiment,
    values: Mapping[str, Mapping[str, Sequence[float | int | None]]],
    *,
    slug: str,
    family: str,
    scale: str,
    seeds: Sequence[int],
    seconds: float | int,
    hardware: str,
    versions: Mapping[str, str],
    commit: str,
) -> Summary:
    """What `summary.json` holds: intervals for every metric and a verdict on every claim.

    Args:
      experiment: whose claims, reported numbers and curves are recorded.
      values: `{arm: {metric: one number a seed}}`, every list in the order of `seeds`. A number
        that is missing or not finite becomes null, and so does its metric's interval.
      slug: of the experiment's file.
      family: the folder of the experiment's file.
      scale: which of the experiment's scales ran.
      seeds: that ran.
      seconds: wall-clock time of the whole run.
      hardware: a line on what it ran on.
      versions: of Python and the libraries.
      commit: of the source tree.
    """
    claims = []
    for claim in experiment.claims:
        verdict = verdicts.judge(claim, values)
        judged = {**vars(claim), **verdict._asdict()}
        judged["note"] = "; ".join(note for note in (claim.note, verdict.note) if note)
        claims.append(judged)
    return {
        "slug": slug,
        "family": family,
        "title": experiment.paper.title,
        "arxiv": experiment.paper.arxiv,
        "scale": scale,
        "seeds": list(seeds),
        "arms": {
            arm: {metric: _cell(numbers) for metric, numbers in metrics.items()}
            for arm, metrics in values.items()
        },
        "arm_notes": {arm: experiment.arms[arm].note for arm in values if arm in experiment.arms},
        "claims": claims,
        "reported": {arm: dict(metrics) for arm, metrics in experiment.reported.items()},
        "curves": list(experiment.curves),
        "seconds": seconds,
        "hardware": hardware,
        "versions": dict(versions),
        "commit": commit,
    }


def read_summary(path: AnyPath) -> Summary:
    """A `summary.json`, checked for what a report needs.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, or a key is missing or of another type; the message names file and key.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (the run has not finished, or is elsewhere)")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(summary, dict):
        raise ValueError(f"{path}: expected an object, found {type(summary).__name__}")
    for key, kind in REQUIRED.items():
        if not isinstance(summary.get(key), kind):
            found = type(summary[key]).__name__ if key in summary else "nothing"
            raise ValueError(f"{path}: {key}: expected {kind.__name__}, found {found}")
    for arm, metrics in summary["arms"].items():
        for metric, cell in metrics.items():
            _require(cell, ("mean", "low", "high", "values"), f"{path}: arms.{arm}.{metric}")
    for index, claim in enumerate(summary["claims"]):
        keys = ("metric", "arm", "relation", "baseline", "difference", "low", "high", "verdict")
        _require(claim, keys, f"{path}: claims[{index}]")
        if claim["verdict"] not in VERDICTS:
            raise ValueError(
                f"{path}: claims[{index}].verdict: expected one of {', '.join(VERDICTS)}, "
                f"found {claim['verdict']!r}"
            )
    return summary


def _require(entry: Any, keys: Sequence[str], where: str) -> None:
    missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")


def _cell(numbers: Sequence[float | int | None]) -> dict[str, Any]:
    """One metric of one arm; JSON has no NaN, so what is not finite is null."""
    finite = [
        float(number) if number is not None and math.isfinite(number) else None
        for number in numbers
    ]
    known = bool(finite) and None not in finite
    mean, low, high = verdicts.interval(finite) if known else (None, None, None)
    return {"mean": mean, "low": low, "high": high, "values": finite}
