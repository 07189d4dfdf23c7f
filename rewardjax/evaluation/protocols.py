"""Evaluation protocols on files of scores: one JSON object a line, whoever made the scores.

`PROTOCOLS` has them by name; docs/evaluation.md has the layouts. Further fields of a row are ignored,
so that a file may carry texts and sources.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rewardjax.data.jsonl import lookup, read_jsonl
from rewardjax.data.records import BadRecord, shown
from rewardjax.evaluation.accuracy import subset_accuracy
from rewardjax.evaluation.best_of_n import best_of_n_curve
from rewardjax.evaluation.bootstrap import bootstrap_interval
from rewardjax.evaluation.calibration import brier, expected_calibration_error
from rewardjax.evaluation.probing import probe
from rewardjax.evaluation.rankings import elo_ratings
from rewardjax.evaluation.reward_bench import Item, reward_bench_2

Row = Mapping[str, Any]
Figures = dict[str, float]


class Protocol(NamedTuple):
    """How a row is read, and what is made of all of them.

    Attributes:
      fields: of a row: a reader for each name; it takes what the row holds and raises `BadRecord`.
      optional: those that a row may lack; they are None then.
      evaluate: rows of read fields to named figures.
    """

    fields: Mapping[str, Callable[[str, Any], Any]]
    evaluate: Callable[[Sequence[dict[str, Any]]], Figures]
    optional: tuple[str, ...] = ()


def evaluate(name: str, path: str | Path) -> Figures:
    """The figures of a protocol on a file of JSON lines, plain or `.gz`.

    Raises:
      ValueError: no such protocol, no row, or rows that do not fit together.
      BadRecord: a row that does not have the layout; it names file, line and field.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, found {name!r}")
    protocol, rows = PROTOCOLS[name], []
    for line, row in read_jsonl(path):
        try:
            rows.append(_read(protocol, row))
        except BadRecord as error:
            raise error.at(str(path), line) from error
    if not rows:
        raise ValueError(f"{path}: expected at least one row, found none")
    return protocol.evaluate(rows)


def pairs(rows: Sequence[dict[str, Any]]) -> Figures:
    """How often the chosen response scores higher, with its 95% interval, and by subset."""
    chosen, rejected = _columns(rows, "chosen", "rejected")
    found = _rate("accuracy", chosen, rejected)
    subsets = [row["subset"] for row in rows if row["subset"] is not None]
    if subsets:
        if len(subsets) < len(rows):
            raise ValueError(f"subset: expected one in all {len(rows)} rows, or in none")
        by_subset = subset_accuracy(chosen, rejected, subsets)
        found |= {f"accuracy/{name}": share for name, share in by_subset.items()}
        found["mean_of_subsets"] = float(np.mean(list(by_subset.values())))
    return found


def consistency(rows: Sequence[dict[str, Any]]) -> Figures:
    """Whether a score heeds the instruction (arXiv:2309.16155): r(q, a) above r(q, a') and r(q', a).

    A tie counts one half; `ties_count` figures count it in full, as the paper's code does.
    """
    own, answer, instruction = _columns(rows, "score", "other_answer", "other_instruction")
    found: Figures = {}
    for name, other in (("response", answer), ("instruction", instruction)):
        found |= _rate(f"{name}_consistency", own, other)
        found[f"{name}_consistency_ties_count"] = float(np.mean(own >= other))
    return found


def calibration(rows: Sequence[dict[str, Any]]) -> Figures:
    """Whether stated probabilities come true as often as they say."""
    stated, outcome = _columns(rows, "probability", "outcome")
    return {
        "expected_calibration_error": expected_calibration_error(stated, outcome),
        "brier": brier(stated, outcome),
        "accuracy": float(np.mean(np.where(stated == 0.5, 0.5, (stated > 0.5) == (outcome > 0.5)))),
    }


def best_of_n(rows: Sequence[dict[str, Any]]) -> Figures:
    """Gold reward of the proxy's favourite of n samples, n = 1, 2, 4, ...; `oracle` chooses by gold."""
    proxy, gold = _columns(rows, "proxy", "gold")
    counts = [2**i for i in range(proxy.shape[1].bit_length())]
    found: Figures = {}
    for name, chooser in (("gold", proxy), ("oracle", gold)):
        curve = best_of_n_curve(chooser, gold, counts)
        for n, values in zip(counts, curve.T):
            mean, low, high = bootstrap_interval(values)
            found |= {f"{name}@{n}": mean, f"{name}@{n}_low": low, f"{name}@{n}_high": high}
    return found


def reward_bench(rows: Sequence[dict[str, Any]]) -> Figures:
    """RewardBench 2: each subset and their unweighted mean."""
    return reward_bench_2(
        Item(
            row["id"], row["subset"], row["scores"], 1 if row["correct"] is None else row["correct"]
        )
        for row in rows
    )


def ranking(rows: Sequence[dict[str, Any]]) -> Figures:
    """Elo ratings of the players (systems) of pairwise games, with 95% intervals, best first."""
    names = sorted({row[side] for row in rows for side in ("first", "second")})
    number = {name: index for index, name in enumerate(names)}
    first, second = (np.array([number[row[side]] for row in rows]) for side in ("first", "second"))
    found = elo_ratings(first, second, _columns(rows, "score")[0], len(names))
    figures: Figures = {}
    for index in np.argsort(-found.rating):
        name = names[index]
        figures[name] = float(found.rating[index])
        figures |= {
            f"{name}_low": float(found.low[index]),
            f"{name}_high": float(found.high[index]),
        }
    return figures


def probing(rows: Sequence[dict[str, Any]]) -> Figures:
    """Accuracy of a linear probe for each dimension, trained on the rows of `"split": "train"`."""
    splits = {name: [row for row in rows if row["split"] == name] for name in ("train", "test")}
    for name, some in splits.items():
        if not some:
            raise ValueError(f"split: expected rows of {name!r}, found none")
    features = {name: _columns(some, "features")[0] for name, some in splits.items()}
    labels = {name: _labels(some) for name, some in splits.items()}
    found = probe(features["train"], labels["train"], features["test"], labels["test"])
    return {
        f"{kind}/{name}": value
        for name, probed in found.items()
        for kind, value in probed._asdict().items()
    }


def _read(protocol: Protocol, row: Row) -> dict[str, Any]:
    return {
        name: None
        if name in protocol.optional and row.get(name) is None
        else reader(name, lookup(row, name))
        for name, reader in protocol.fields.items()
    }


def _number(name: str, value: Any, low: float = -np.inf, high: float = np.inf) -> float:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not np.isfinite(value) or not low <= value <= high:
        within = "" if np.isinf(low) else f" in [{low:g}, {high:g}]"
        raise BadRecord(name, f"a finite number{within}", shown(value))
    return float(value)


def _numbers(name: str, value: Any) -> list[float]:
    if not isinstance(value, list) or not value:
        raise BadRecord(name, "a list of numbers", shown(value))
    return [_number(f"{name}.{i}", each) for i, each in enumerate(value)]


def _text(name: str, value: Any, among: Iterable[str] = ()) -> str:
    if not isinstance(value, str) or not value or (among and value not in among):
        raise BadRecord(name, " or ".join(map(repr, among)) or "a text", shown(value))
    return value


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRecord(name, "a whole number from 1", shown(value))
    return value


def _classes(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise BadRecord(name, "an object of a class for each dimension", shown(value))
    for dimension, each in value.items():
        if not isinstance(each, str | int):
            raise BadRecord(f"{name}.{dimension}", "a text or a whole number", shown(each))
    return value


def _columns(rows: Sequence[dict[str, Any]], *names: str) -> list[np.ndarray]:
    columns = []
    for name in names:
        sizes = {np.size(row[name]) for row in rows}
        if len(sizes) > 1:
            raise ValueError(
                f"{name}: expected as many numbers in every row, found {sorted(sizes)}"
            )
        columns.append(np.asarray([row[name] for row in rows], np.float64))
    return columns


def _rate(name: str, ours: np.ndarray, others: np.ndarray) -> Figures:
    mean, low, high = bootstrap_interval(np.where(ours == others, 0.5, ours > others))
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _labels(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = rows[0]["labels"].keys()
    for row in rows:
        if row["labels"].keys() != names:
            raise ValueError(
                f"labels: expected {sorted(names)} in every row, found {sorted(row['labels'])}"
            )
    return {name: np.asarray([row["labels"][name] for row in rows]) for name in names}


_share = partial(_number, low=0.0, high=1.0)

PROTOCOLS: Mapping[str, Protocol] = {
    "pairs": Protocol(
        {"chosen": _number, "rejected": _number, "subset": _text}, pairs, optional=("subset",)
    ),
    "reward-bench-2": Protocol(
        {"id": _text, "subset": _text, "scores": _numbers, "correct": _count},
        reward_bench,
        optional=("correct",),
    ),
    "consistency": Protocol(
        {"score": _number, "other_answer": _number, "other_instruction": _number}, consistency
    ),
    "calibration": Protocol({"probability": _share, "outcome": _share}, calibration),
    "best-of-n": Protocol({"proxy": _numbers, "gold": _numbers}, best_of_n),
    "ranking": Protocol({"first": _text, "second": _text, "score": _share}, ranking),
    "probing": Protocol(
        {
            "features": _numbers,
            "labels": _classes,
            "split": partial(_text, among=("train", "test")),
        },
        probing,
    ),
}
