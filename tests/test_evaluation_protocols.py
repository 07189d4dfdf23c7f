"""Protocols on files of scores, and the metrics that they are made of, against numbers by hand."""

import gzip
import json
from itertools import combinations
from math import tanh

import numpy as np
import pytest

from rewardjax.cli import main
from rewardjax.data.records import BadRecord
from rewardjax.evaluation.best_of_n import best_of_n_curve
from rewardjax.evaluation.probing import probe
from rewardjax.evaluation.protocols import evaluate
from rewardjax.evaluation.reward_bench import Item, reward_bench_2, ties_score, top_credit


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("scores", "credit"),
    [
        ([3, 1, 2, 0], 1),
        ([1, 3, 2, 0], 0),
        ([3, 3, 0, 0], 1 / 2),
        ([1, 1, 1, 0], 1 / 3),
        ([2] * 4, 1 / 4),
    ],
)
def test_the_correct_completion_shares_the_credit_of_a_tie(scores, credit):
    assert top_credit(Item("a", "Math", scores)) == pytest.approx(credit)


def test_ties_are_scored_by_gaps_and_spreads():
    # Prompt 1: spread 1, gap 2, reference gap 3. Prompt 2: spread 3, gap 1, reference gap -1.
    items = [
        Item("tied:1", "Ties", [5, 4, 2], 2),
        Item("ref:1", "Ties", [4, 1], 1),
        Item("tied:2", "Ties", [6, 3, 2, 1], 2),
        Item("ref:2", "Ties", [1, 2], 1),
    ]
    by_hand = (
        0.3 * (1 + 1) / 2
        + 0.3 * (1 + 0) / 2
        + 0.2 * (1 + 0) / 2
        + 0.2 * (1 + 0) / 2
        + 0.01 * (tanh(2 / 1 - 1) + tanh(-1 / 3 - 1)) / 2
    )
    assert ties_score(items) == pytest.approx(by_hand)
    both = reward_bench_2([*items, Item("m", "Math", [1, 0, 0, 0])])
    assert both == pytest.approx({"Ties": by_hand, "Math": 1.0, "total": (by_hand + 1) / 2})


def test_equal_correct_completions_are_the_best_that_ties_can_be():
    items = [Item("tied:1", "Ties", [1, 1, 0], 2), Item("ref:1", "Ties", [1, 0], 1)]
    assert ties_score(items) == pytest.approx(1.01)
    constant = [Item("tied:1", "Ties", [1, 1, 1], 2), Item("ref:1", "Ties", [1, 1], 1)]
    assert ties_score(constant) == 0.0


def test_incomplete_ties_are_named():
    with pytest.raises(ValueError, match="expected both 'tied:7' and 'ref:7'"):
        ties_score([Item("tied:7", "Ties", [1, 0], 1)])
    with pytest.raises(ValueError, match="expected 'tied:ID' or 'ref:ID'"):
        ties_score([Item("7", "Ties", [1, 0], 1)])
    with pytest.raises(ValueError, match="a: correct: expected 1 to 1 of 2 completions, found 2"):
        top_credit(Item("a", "Math", [1, 0], 2))


def test_best_of_n_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(0)
    proxy, gold = rng.integers(0, 3, (2, 5)).astype(float), rng.normal(size=(2, 5))
    for n in (1, 2, 4, 5):
        brute = []
        for p, g in zip(proxy, gold):
            picked = []
            for some in map(list, combinations(range(5), n)):
                picked.append(np.mean(g[some][p[some] == p[some].max()]))
            brute.append(np.mean(picked))
        # Samples tied over all are averaged over all of them, in a subset over those drawn: the same.
        np.testing.assert_allclose(best_of_n_curve(proxy, gold, [n])[:, 0], brute, atol=1e-12)


def test_best_of_n_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="expected 1 to 3 samples, found 4"):
        best_of_n_curve(np.zeros((1, 3)), np.zeros((1, 3)), [4])
    with pytest.raises(ValueError, match="gold: expected finite"):
        best_of_n_curve(np.zeros((1, 2)), np.array([[0.0, np.nan]]), [1])


def test_a_probe_finds_what_is_linear_and_nothing_else():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 4))
    labels = {"linear": features[:, 0] > 0, "noise": rng.random(400) > 0.5}
    halves = [{k: v[part] for k, v in labels.items()} for part in (slice(200), slice(200, 400))]
    found = probe(features[:200], halves[0], features[200:], halves[1])
    assert found["linear"].accuracy > 0.95
    assert abs(found["noise"].accuracy - 0.5) < 0.12
    with pytest.raises(ValueError, match=r"labels\.same: expected two classes"):
        probe(features, {"same": np.zeros(400)}, features, {"same": np.zeros(400)})


def test_pairs_by_subset(tmp_path):
    rows = [
        {"chosen": 1, "rejected": 0, "subset": "chat", "text": "carried along"},
        {"chosen": 1, "rejected": 1, "subset": "chat"},
        {"chosen": 0, "rejected": 1, "subset": "maths"},
    ]
    found = evaluate("pairs", write(tmp_path / "s.jsonl", rows))
    assert found["accuracy"] == 0.5
    assert found["accuracy_low"] <= 0.5 <= found["accuracy_high"]
    assert (found["accuracy/chat"], found["accuracy/maths"]) == (0.75, 0.0)
    assert found["mean_of_subsets"] == 0.375


def test_consistency_counts_ties_in_both_ways(tmp_path):
    rows = [
        {"score": 1, "other_answer": 1, "other_instruction": 0},
        {"score": 1, "other_answer": 2, "other_instruction": 0},
    ]
    found = evaluate("consistency", write(tmp_path / "s.jsonl", rows))
    assert found["response_consistency"] == 0.25
    assert found["response_consistency_ties_count"] == 0.5
    assert found["instruction_consistency"] == 1.0


def test_calibration_and_best_of_n_files(tmp_path):
    rows = [{"probability": 0.9, "outcome": 1}, {"probability": 0.9, "outcome": 0}]
    found = evaluate("calibration", write(tmp_path / "c.jsonl", rows))
    assert found == pytest.approx(
        {"expected_calibration_error": 0.4, "brier": (0.01 + 0.81) / 2, "accuracy": 0.5}
    )
    rows = [{"proxy": [0, 1, 2], "gold": [3, 6, 0]}]
    found = evaluate("best-of-n", write(tmp_path / "b.jsonl", rows))
    # Of two of three: (0, 1) gives 6, the other two pairs 0.
    assert (found["gold@1"], found["gold@2"]) == pytest.approx((3.0, 2.0))
    assert found["oracle@2"] == pytest.approx((6 + 6 + 3) / 3)


def test_systems_are_ranked(tmp_path):
    games = [("a", "b", 1)] * 30 + [("b", "a", 1)] * 10 + [("b", "c", 0.75)] * 40
    rows = [{"first": x, "second": y, "score": score} for x, y, score in games]
    found = evaluate("ranking", write(tmp_path / "r.jsonl", rows))
    assert [name for name in found if "_" not in name] == ["a", "b", "c"]
    # Odds of 3 to 1 are 400 log10(3) points.
    assert found["a"] - found["b"] == pytest.approx(400 * np.log10(3), rel=0.03)
    assert found["a_low"] < found["a"] < found["a_high"]


def test_probing_reads_splits_and_labels(tmp_path):
    pytest.importorskip("sklearn")
    rows = [
        {"features": [x, 1.0], "labels": {"sign": int(x > 0)}, "split": split}
        for split in ("train", "test")
        for x in (-2.0, -1.0, 1.0, 2.0)
    ]
    found = evaluate("probing", write(tmp_path / "p.jsonl", rows))
    assert found == {"accuracy/sign": 1.0, "majority/sign": 0.5}
    with pytest.raises(ValueError, match="split: expected rows of 'test'"):
        evaluate("probing", write(tmp_path / "q.jsonl", rows[:4]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": 1}, r"s.jsonl:2: rejected: expected a field of this name"),
        (
            {"chosen": "high", "rejected": 0},
            r"s.jsonl:2: chosen: expected a finite number, found 'high'",
        ),
        ({"chosen": True, "rejected": 0}, r"chosen: expected a finite number, found True"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    path = write(tmp_path / "s.jsonl", [{"chosen": 1, "rejected": 0}, row])
    with pytest.raises(BadRecord, match=message):
        evaluate("pairs", path)


def test_the_command_prints_figures_or_a_mistake(tmp_path, capsys):
    path = tmp_path / "s.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write('{"id": "1", "subset": "Math", "scores": [2, 1, 0, 0]}\n')
    assert main(["evaluate", "reward-bench-2", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"Math": 1.0, "total": 1.0}
    assert main(["evaluate", "reward-bench-2", str(path)]) == 0
    assert "total  1.0000" in capsys.readouterr().out
    assert main(["evaluate", "reward-bench", str(path)]) == 2
    assert "protocol: expected one of pairs" in capsys.readouterr().err
    assert main(["evaluate", "pairs", str(tmp_path / "absent.jsonl")]) == 2
