"""Secrets of RLHF II: what becomes of labels, and arms for a few steps."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reward_models import secrets_rlhf_rm as study
from experiments.reward_models.secrets_rlhf_rm import EXPERIMENT
from rewardjax import losses
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]


def test_labels_by_strength():
    strength = jnp.array([-2.0, -0.5, *[1.0] * 8])
    np.testing.assert_allclose(study.vanilla(SMOKE, strength)[0], 1)
    np.testing.assert_allclose(study.flip(SMOKE, strength)[0], [0, 0, *[1] * 8])
    np.testing.assert_allclose(study.smooth(SMOKE, strength)[0], [0.9, 0.9, *[1] * 8])
    for label in (study.vanilla, study.flip, study.smooth):
        np.testing.assert_array_equal(label(SMOKE, strength)[1], 0)
        probability, margin = study.margin(SMOKE, strength, label=label)
        np.testing.assert_array_equal(probability, label(SMOKE, strength)[0])
        np.testing.assert_array_equal(margin, strength)


def test_labels_as_they_are_give_bradley_terry():
    scores = jnp.array([[0.5, -1.0], [0.0, 2.0]])
    probability, margin = study.vanilla(SMOKE, jnp.zeros(2))
    found = study.relabelled(scores, {"probability": probability, "margin": margin})
    np.testing.assert_array_equal(found, losses.bradley_terry(scores[:, 0] - scores[:, 1]))


def test_pairs_of_equal_gold_do_not_count():
    gold = np.array([[1.0, 0.0, 0.0]])
    assert study.accuracy(jnp.array([[0.5, 0.0, 1.0]]), gold) == 0.5


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize("arm", ["flip_margin", "swav", "deciles"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())


def test_metarm_without_a_meta_step_is_fitting_on(shared, tmp_path):
    """At rate 0 the two arms of rounds are one."""
    still = dataclasses.replace(SMOKE, rate=0.0, rounds=1)
    found = []
    for meta in (False, True):
        with Run(tmp_path / str(meta), 0, "rounds") as run:
            found.append(partial(study.rounds, meta=meta)(still)(run, shared))
    assert found[0] == found[1]
    assert all(np.isfinite(x) for x in found[0].values())
