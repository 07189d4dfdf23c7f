"""Verifiers: the objective by hand, what is measured, arms on generated questions and on text."""

import dataclasses
import gzip
import itertools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.reasoning import gsm8k_verifier as study
from experiments.reasoning.gsm8k_verifier import EXPERIMENT
from rewardjax.data.formats import GSM8K_MODELS, gsm8k_demonstration
from rewardjax.data.records import BadRecord, Demonstration, Preference, Solution
from rewardjax.data.solutions import JoinedSource, bucketed_solutions, packed_demonstrations
from rewardjax.data.sources import ArraySource
from rewardjax.data.tokenizers import CharTokenizer, SentencePieceTokenizer
from rewardjax.evaluation.verification import best_candidate, roc_auc, verification
from rewardjax.models.heads import RewardModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.text_reward_model import TextConfig, read_text
from rewardjax.recipes.text_verifier import read_solutions, split_by_question
from rewardjax.recipes.verifier import (
    predictions,
    solution_level,
    token_level,
    verification_loss,
)
from rewardjax.training.loop import LoopConfig
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]
SMOKE = dataclasses.replace(  # one layer compiles sooner
    SMOKE,
    sampled=dataclasses.replace(
        SMOKE.sampled, model=dataclasses.replace(SMOKE.sampled.model, layers=1)
    ),
)
TINY = TransformerConfig(
    vocab=16, layers=1, width=8, heads=1, kv_heads=1, head_dim=8, mlp_width=16, context=512
)
MODEL = RewardModel(TINY)


def on(*rows):
    return jnp.array([[character == "x" for character in row] for row in rows])


def batch():
    key = jax.random.key(3)
    tokens = jax.random.randint(key, (2, 2, 6), 1, 16)
    return {
        "tokens": tokens[0],
        "valid": on("xxxxxx", "xxxxx."),
        "mask": on("..xxxx", "...xx."),
        "correct": jnp.array([1.0, 0.0]),
        "language": {
            "tokens": tokens[1],
            "valid": on("xxxxx.", "xxxxxx"),
            "mask": on(".xxxx.", "....xx"),
        },
    }


PREDICTED = jax.jit(partial(predictions, MODEL))


def parameters():
    """Random ones: a head that starts at 0 would predict the same everywhere."""
    params = MODEL.init(jax.random.key(0))
    kernel = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    return params | {"head": {"kernel": kernel, "bias": jnp.array([0.3])}}


def verified(params, rows, *settings):
    """The objective, compiled as a whole."""
    return jax.jit(verification_loss(MODEL, *settings))(params, rows)


def value(loss, name):
    return float(loss.terms[name].value)


def test_levels_count_solution_tokens_or_the_last():
    mask = on("..xxxx", "...xx.", "......")
    np.testing.assert_array_equal(token_level(mask), mask)
    np.testing.assert_array_equal(solution_level(mask), on(".....x", "....x.", "......"))


def test_verifier_loss_by_hand():
    params, rows = parameters(), batch()
    v = np.asarray(PREDICTED(params, rows["tokens"], rows["valid"]))
    assert np.ptp(v[0]) > 0.01
    squares = [(x - 1) ** 2 for x in v[0, 2:6]] + [x**2 for x in v[1, 3:5]]
    found = verified(params, rows, token_level)
    assert value(found, "verifier") == pytest.approx(np.mean(squares), rel=1e-5)
    found = verified(params, rows, solution_level)
    ends = [(v[0, 5] - 1) ** 2, v[1, 4] ** 2]
    assert value(found, "verifier") == pytest.approx(np.mean(ends), rel=1e-5)
    right = np.mean([v[0, 5] > 0.5, v[1, 4] <= 0.5])
    assert float(found.metrics["accuracy"].value) == pytest.approx(right)


def test_predictions_have_seen_the_token_and_the_last_one_is_the_score():
    params, rows = parameters(), batch()
    v = PREDICTED(params, rows["tokens"], rows["valid"])
    score = jax.jit(MODEL.score)(params, rows["tokens"], rows["valid"])
    np.testing.assert_allclose(score, [v[0, 5], v[1, 4]], rtol=1e-6)
    changed = rows["tokens"].at[0, 4].add(1) % 16
    w = PREDICTED(params, changed, rows["valid"])
    np.testing.assert_allclose(w[0, :4], v[0, :4], rtol=1e-5)
    assert abs(float(w[0, 4] - v[0, 4])) > 1e-4


def test_language_loss_is_of_the_demonstrations_answers_alone():
    params, rows = parameters(), batch()
    language = rows["language"]
    hidden = MODEL.module.bind({"params": params}).backbone
    states, _ = hidden(language["tokens"], language["valid"].astype(jnp.int32))
    logits = np.asarray(hidden.logits(states), np.float64)
    chance = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    tokens = np.asarray(language["tokens"])
    masked = [(0, t) for t in range(1, 5)] + [(1, t) for t in range(4, 6)]
    nll = -np.mean([chance[row, t - 1, tokens[row, t]] for row, t in masked])
    found = verified(params, rows, token_level, 0.5)
    assert value(found, "language") == pytest.approx(0.5 * nll, rel=1e-4)
    alone = verified(params, rows, token_level, 0.0)
    assert set(alone.terms) == {"verifier"}
    assert value(alone, "verifier") == value(found, "verifier")


def test_padding_and_empty_rows_change_nothing():
    params, rows = parameters(), batch()
    loss = jax.jit(verification_loss(MODEL, token_level))
    expected = value(loss(params, rows), "verifier")
    other = rows | {"tokens": rows["tokens"].at[1, 5].set(7)}
    assert value(loss(params, other), "verifier") == pytest.approx(expected, rel=1e-6)
    nothing = rows | {"mask": jnp.zeros((2, 6), bool)}
    assert value(loss(params, nothing), "verifier") == 0.0
    gradient = jax.jit(jax.grad(lambda p: loss(p, nothing).terms["verifier"].value))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


SCORES = np.array([[0.9, 0.2], [0.4, 0.6], [0.7, 0.7]], np.float32)
CORRECT = np.array([[True, False], [True, False], [True, False]])


def test_measures_by_hand():
    np.testing.assert_array_equal(best_candidate(SCORES, CORRECT), [1.0, 0.0, 0.5])
    found = verification(SCORES, CORRECT, training_share=0.4)
    # Right: 0.9, 0.2 and one 0.7. Pairs won: 0.9 of all three, 0.4 of 0.2, 0.7 of two and a tie.
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["auc"] == pytest.approx((3 + 1 + 2.5) / 9)
    assert found["majority"] == found["single"] == 0.5
    assert found["lift"] == found["gain"] == 0.0
    assert found["best_of_n"] == 0.5
    assert found["oracle"] == 1.0
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]


def test_majority_is_chosen_on_training_data():
    correct = np.array([[True, True, True, False]])
    scores = np.full((1, 4), 0.1, np.float32)
    assert verification(scores, correct, 0.4)["majority"] == 0.25
    assert verification(scores, correct, 0.6)["majority"] == 0.75


def test_auc_agrees_with_mann_whitney_and_has_no_nan():
    rng = np.random.default_rng(0)
    scores, correct = np.round(rng.random(60), 1), rng.random(60) < 0.3
    expected = stats.mannwhitneyu(scores[correct], scores[~correct]).statistic
    share = expected / (correct.sum() * (~correct).sum())
    assert roc_auc(scores, correct) == pytest.approx(share)
    assert roc_auc(scores, np.ones(60, bool)) == 0.5
    with pytest.raises(ValueError, match="found NaN"):
        roc_auc(np.array([np.nan, 1.0]), np.array([True, False]))


CHARACTERS = CharTokenizer("ab\n")


def test_packed_demonstrations_keep_masks_on_their_answers():
    records = [Demonstration("a", "bb"), Demonstration("aa", "b"), Demonstration("a", "b" * 20)]
    arrays, dropped = packed_demonstrations(records, CHARACTERS, 12)
    assert dropped == 1
    a, b, newline = CHARACTERS.encode("ab\n")
    expected = [1, a, newline, b, b, 2, 1, a, a, newline, b, 2]
    np.testing.assert_array_equal(arrays["tokens"], [expected])
    np.testing.assert_array_equal(arrays["segments"], [[1] * 6 + [2] * 6])
    np.testing.assert_array_equal(arrays["mask"], on("...xxx....xx"))


def test_bucketed_solutions_and_joined_sources_resume():
    records = [Solution("a" * n, "b", n % 2 == 0, "m") for n in (1, 2, 3, 9, 10, 11)]
    beside = {"tokens": np.arange(5)}

    def source():
        judged = bucketed_solutions(records, CHARACTERS, 2, 0, (8, 16))
        return JoinedSource(judged, {"language": ArraySource(beside, 2, 0)})

    first, second = source(), source()
    assert not first.uniform
    for _ in range(3):
        found = first.next()
        length = found["valid"].sum(axis=1)
        np.testing.assert_array_equal(found["correct"], (length - 4) % 2 == 0)
        np.testing.assert_array_equal(found["mask"].sum(axis=1), 2)  # "b" and the end
        assert found["tokens"].shape[1] == (8 if length.max() <= 8 else 16)
        assert found["language"]["tokens"].shape == (2,)
    second.restore(json.loads(json.dumps(first.state())))
    jax.tree.map(np.testing.assert_array_equal, first.next(), second.next())


def test_gsm8k_demonstrations_have_the_solutions_form():
    found = gsm8k_demonstration({"question": "q", "answer": "1+1=2\n#### 1,002"})
    assert found == Demonstration("q", "1+1=2\nA: 1,002")
    with pytest.raises(BadRecord, match="answer: expected a number"):
        gsm8k_demonstration({"question": "q", "answer": "1+1=2"})


def test_split_has_whole_questions_and_follows_the_seed():
    records = [Solution(f"q{i % 10}", "s", True, "m") for i in range(40)]
    train, test = split_by_question(records, 0.2, 0)
    assert (len(train), len(test)) == (32, 8)
    assert not {r.question for r in train} & {r.question for r in test}
    assert split_by_question(records, 0.2, 0) == (train, test)
    assert any(split_by_question(records, 0.2, seed)[1] != test for seed in range(1, 4))
    with pytest.raises(ValueError, match="held_out: expected a share"):
        split_by_question(records, 0.0, 0)


def judged(solution, correct):
    return {"solution": solution, "is_correct": correct}


def write_rows(path, rows):
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def write_gsm8k(folder):
    """Twelve questions with four solutions each, one without a label; a reference without a number."""
    rows = []
    for i in range(12):
        solutions = {
            name: judged(f"{i} + {k} = {i + k}\nA: {i + k}", k == 1)
            for k, name in enumerate(GSM8K_MODELS)
        }
        rows.append({"question": f"What is {i} and one more?", **solutions})
    del rows[5]["175b_finetuning"]["is_correct"]
    write_rows(folder / "model_solutions.jsonl.gz", rows)
    answers = [
        {"question": f"What is {i} and two more?", "answer": f"{i} + 2 = {i + 2}\n#### {i + 2}"}
        for i in range(20)
    ]
    # Of a question that has solutions too: it must not be learned from where that is held out.
    answers += [{"question": r["question"], "answer": "so\n#### 5"} for r in rows]
    write_rows(folder / "train.jsonl.gz", [*answers, {"question": "q", "answer": "none"}])


SMALL_TEXT = TextConfig(
    vocab=300,
    buckets=(64, 96),
    model=TINY,
    pretraining=SupervisedConfig(2, loop=LoopConfig(steps=2)),
    fit=SupervisedConfig(4, loop=LoopConfig(steps=2)),
)


def run_arms(config, folder, arms):
    with Run(folder / "prepare", 0, "prepare") as run:
        shared = study.prepare(config)(run)
        run.flush()
    for arm in arms:
        with Run(folder / arm, 0, arm) as run:
            metrics = EXPERIMENT.arms[arm].build(config)(run, shared)
        assert all(np.isfinite(number) for number in metrics.values())
        rows = (folder / arm / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        assert len(rows) == 8
        assert {"prompt", "response", "correct", "score"} <= set(json.loads(rows[0]))
        yield metrics


def test_arms_on_generated_questions(tmp_path):
    joint, alone = run_arms(SMOKE, tmp_path, ("token_level", "solution_level_no_lm"))
    assert {claim.metric for claim in EXPERIMENT.claims} <= set(joint)
    for same in ("single", "oracle", "greedy", "majority"):
        assert joint[same] == alone[same]
    assert joint["single"] <= joint["oracle"]


def test_text_in_gsm8ks_layout(tmp_path):
    write_gsm8k(tmp_path)
    config = dataclasses.replace(SMOKE, data=f"gsm8k:{tmp_path}", text=SMALL_TEXT)
    (metrics,) = run_arms(config, tmp_path, ("token_level",))
    assert metrics["single"] == 0.25  # one of four solutions of each question
    assert metrics["oracle"] == 1.0
    assert metrics["majority"] == 0.75
    warnings = (tmp_path / "prepare" / "warnings.log").read_text(encoding="utf-8")
    assert "model_solutions.jsonl.gz: left out 1: 175b_finetuning.is_correct" in warnings
    assert "train.jsonl.gz: left out 1: answer: expected a number" in warnings


def test_held_out_questions_are_learned_from_nowhere(tmp_path):
    write_gsm8k(tmp_path)
    told = []
    data = read_solutions(tmp_path, SMALL_TEXT, 0.25, 0, told.append)
    tested = {record.question for record in data.test}
    learned = {r.question for r in data.train} | {r.prompt for r in data.demonstrations}
    assert len(tested) == 3
    assert not tested & learned
    assert len(data.demonstrations) == 20 + 12 - 3
    assert len(told) == 2
    strict = dataclasses.replace(SMALL_TEXT, on_bad_record="raise")
    with pytest.raises(BadRecord, match=r"model_solutions\.jsonl\.gz:6"):
        read_solutions(tmp_path, strict, 0.25, 0, told.append)


def test_real_gsm8k(real_data, tmp_path):
    for name, count in {"model_solutions": 120, "train": 200}.items():
        with gzip.open(real_data / "gsm8k" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            rows = [json.loads(line) for line in itertools.islice(stream, count)]
        write_rows(tmp_path / f"{name}.jsonl.gz", rows)
    text = dataclasses.replace(SMALL_TEXT, vocab=800, buckets=(512,))
    told = []
    data = read_solutions(tmp_path, text, 0.2, 1, told.append)
    # All answers have a number and all solutions a label; one question has one that rambles.
    assert all("longer than 512 tokens" in message for message in told)
    assert len(data.train) + len(data.test) == 4 * 119
    assert len(data.demonstrations) == 200
    tested = {record.question for record in data.test}
    assert not tested & {record.question for record in data.train}
    config = dataclasses.replace(SMOKE, data=f"gsm8k:{tmp_path}", text=text)
    (metrics,) = run_arms(config, tmp_path, ("token_level",))
    assert metrics["oracle"] > metrics["single"] > 0.1


class Doubling(SentencePieceTokenizer):
    """Adds a begin marker of its own."""

    def encode(self, text):
        return [self.bos_id, *super().encode(text)]


@pytest.mark.parametrize("kind", ["preferences", "solutions"])
def test_doubled_begin_markers_are_told(kind, tmp_path, monkeypatch):
    train = SentencePieceTokenizer.train
    write_gsm8k(tmp_path)
    for split in ("train", "test"):
        rows = [
            dataclasses.asdict(Preference(f"prompt {i}", (f"yes {i}", f"no {i}")))
            for i in range(20)
        ]
        fields = ("prompt", "responses")
        write_rows(
            tmp_path / f"{split}_pairs.jsonl.gz", [{k: row[k] for k in fields} for row in rows]
        )

    def read(told):
        if kind == "solutions":
            return read_solutions(tmp_path, SMALL_TEXT, 0.25, 0, told.append)
        text = dataclasses.replace(SMALL_TEXT, vocab=285)
        return read_text(f"jsonl:{tmp_path}/{{split}}_pairs.jsonl.gz", text, told.append)

    read(plain := [])
    assert not any("begin markers" in message for message in plain)
    monkeypatch.setattr(
        SentencePieceTokenizer,
        "train",
        classmethod(lambda cls, *args: Doubling(train(*args).model)),
    )
    read(doubled := [])
    assert any("begin with two begin markers (id 1)" in message for message in doubled)


def test_data_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"gsm8k:DIR with the files.*found 'gsm8k'"):
        study.prepare(EXPERIMENT.scales["paper"])
