"""HelpSteer2-Preference: its losses by hand, the pairs, the extrapolation, arms on both kinds of data."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reward_models import helpsteer2_preference as study
from experiments.reward_models.helpsteer2_preference import EXPERIMENT
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.preference_lab import LabConfig, PreferenceLab
from rewardjax.recipes.rated_pairs import RatedPairsConfig, helpfulness, measured, rated_pairs
from rewardjax.recipes.text_reward_model import TextConfig
from rewardjax.training.loop import smoke
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


SCORES = jnp.array([[1.0, 0.0], [0.5, 2.0]])
BATCH = {
    "helpfulness": jnp.array([[3.0, 1.0], [2.0, 2.5]]),
    "strength": jnp.array([[3.0, -3.0], [1.0, -1.0]]),
}
GAPS = np.array([1.0, -1.5])


def test_losses_by_hand():
    plain = -np.log(sigmoid(GAPS))
    np.testing.assert_allclose(study.bt(SCORES, BATCH), plain, rtol=1e-6)
    np.testing.assert_allclose(study.scaled_bt(SCORES, BATCH), [3 * plain[0], plain[1]], rtol=1e-6)
    margin = -np.log(sigmoid([1.0 - 3.0, -1.5 - 1.0]))
    np.testing.assert_allclose(study.margin_bt(SCORES, BATCH), margin, rtol=1e-6)
    squares = [(2.0**2 + 1.0**2) / 2, (1.5**2 + 0.5**2) / 2]
    np.testing.assert_allclose(study.regression(SCORES, BATCH), squares, rtol=1e-6)


def test_weights_of_mean_one():
    unit = study.scaled_bt_unit(SCORES, BATCH)
    np.testing.assert_allclose(unit, np.asarray(study.scaled_bt(SCORES, BATCH)) / 2, rtol=1e-6)


def test_equal_strengths_reduce_scaling_to_a_factor():
    batch = {"strength": jnp.array([[2.0, -2.0], [2.0, -2.0]])}
    plain = study.bt(SCORES, batch)
    np.testing.assert_allclose(study.scaled_bt(SCORES, batch), 2 * plain, rtol=1e-6)
    np.testing.assert_allclose(study.scaled_bt_unit(SCORES, batch), plain, rtol=1e-6)


def test_soft_labels_weigh_both_orders():
    batch = {"probability": jnp.array([0.25, 0.25])}
    expected = -0.25 * np.log(sigmoid(GAPS)) - 0.75 * np.log(sigmoid(-GAPS))
    np.testing.assert_allclose(study.bt(SCORES, batch), expected, rtol=1e-6)


def test_rated_pairs_agree_with_their_gold():
    config, lab = RatedPairsConfig(), PreferenceLab(LabConfig())
    pairs = jax.tree.map(np.asarray, rated_pairs(config, lab, jax.random.key(0), 2000))
    gap = pairs["utility"][:, 0] - pairs["utility"][:, 1]
    strength = pairs["strength"][:, 0]
    np.testing.assert_array_equal(pairs["strength"][:, 1], -strength)
    expected = np.where(np.abs(gap) > 1.6, 3, np.where(np.abs(gap) > 0.7, 2, 1))
    np.testing.assert_array_equal(strength, np.where(gap == 0, 0, expected))
    for m, rate in zip((1, 2, 3), config.flip_rates):
        wrong = (gap < 0)[strength == m]
        sampling = 4 * np.sqrt(rate * (1 - rate) / wrong.size)
        assert wrong.mean() == pytest.approx(rate, abs=sampling)
    assert pairs["helpfulness"].min() >= 0
    assert pairs["helpfulness"].max() <= 4
    inside = (pairs["utility"] > 1) & (pairs["utility"] < 3)
    error = (pairs["helpfulness"] - pairs["utility"])[inside]
    assert abs(error.mean()) < 0.1


def test_helpfulness_spans_the_scale():
    values = helpfulness(RatedPairsConfig(gold_range=(-1.0, 3.0)), jnp.array([-1.0, 1.0, 3.0]))
    np.testing.assert_allclose(values, [0, 2, 4])


def test_accuracy_is_by_choice_on_validation_and_by_gold_on_test():
    pairs = {
        "utility": np.array([[2.0, 1.0], [1.0, 2.0], [3.0, 0.0]]),
        "strength": np.array([[1.0, -1.0], [1.0, -1.0], [3.0, -3.0]]),
    }
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert measured(pairs, scores, gold=False) == {"accuracy": pytest.approx(1 / 3)}
    found = measured(pairs, scores, gold=True)
    assert found == {"accuracy": pytest.approx(2 / 3), "accuracy_1": 1.0, "accuracy_3": 0.0}


def test_the_extrapolation_is_chosen_on_validation_pairs(tmp_path):
    config = dataclasses.replace(SMOKE, expo=(1.5, 3))  # a in 0, 0.5, 1, 1.5
    start, end = {"w": jnp.array(0.0)}, {"w": jnp.array(1.0)}
    # Of the parameters 1, 1.5, 2, 2.5 validation is best at 1.5 and 2, test at 2.5.
    validation = {1.0: 0.5, 1.5: 0.8, 2.0: 0.8, 2.5: 0.6}

    def evaluate(params, split):
        w = float(params["w"])
        return {"accuracy": validation[w] if split == "validation" else w / 10}

    with Run(tmp_path) as run:
        params, metrics = study.extrapolate(config, run, start, end, evaluate)
        np.testing.assert_allclose(run.history("test_accuracy"), [0.1, 0.15, 0.2, 0.25])
    assert float(params["w"]) == 1.5
    assert metrics == {"best_a": 0.5, "validation": 0.8}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize("arm", ["reg_scaled_expo", "rloo", "dpo"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    assert {c.metric for c in EXPERIMENT.claims if c.arm == arm} <= set(metrics)
    assert list(tmp_path.rglob("samples.jsonl"))


def tiny_text(data: str):
    config = smoke(EXPERIMENT.scales["mini"], steps=2, data=data)
    model = TransformerConfig(layers=1, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64)
    text = dataclasses.replace(config.text, vocab=400, buckets=(64,), model=model)
    return dataclasses.replace(config, text=text)


def texts(path: Path, attributes: dict | None = None):
    """Forty records in the project's own layout; polite responses are preferred."""
    rows = []
    for i in range(40):
        question = f"Human: what is {i} and {i + 1}? Please tell me in a few words."
        pair = [f" It is {i * 2 + 1}, thank you for asking me.", f" Go away with number {i}!"]
        rows.append(
            {"prompt": question, "responses": pair, "probability": 1.0} | (attributes or {})
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_text_trains_the_reward_models_that_it_has_labels_for(tmp_path):
    config = tiny_text(f"jsonl:{texts(tmp_path / 'train.jsonl')}")
    reasons = study.inapplicable(config)
    assert set(reasons) == set(EXPERIMENT.arms) - {"bt"}
    assert "helpfulness" in reasons["reg"]
    assert "strength" in reasons["scaled_bt"]
    assert "only data=world" in reasons["dpo"]
    with pytest.raises(ValueError, match="arm 'reg' needs the attribute helpfulness"):
        EXPERIMENT.arms["reg"].build(config)


def test_human_preferences_are_learned_from(tmp_path, real_data):
    config = tiny_text(f"hh:{real_data / 'hh_harmless'}")
    with Run(tmp_path, 0, "bt") as run:
        shared = EXPERIMENT.prepare(config)(run)
        metrics = EXPERIMENT.arms["bt"].build(config)(run, shared)
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
    assert metrics["length_baseline"] + metrics["shorter_baseline"] == pytest.approx(1.0)
    assert 0.35 < metrics["random_baseline"] < 0.65


def test_too_few_records_for_tuning_are_refused():
    with pytest.raises(ValueError, match="validation: expected 2 or more, found 1"):
        TextConfig(validation=1)
