"""DNO: its labels by hand, the exact update, and arms for a few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.preferences import dno
from rewardjax.training.run import Run

SMOKE = dno.EXPERIMENT.scales["smoke"]
# Two samples and the teacher: the first beats both, the teacher beats the second.
CONFIG = dno.Config(margin=0.5, sharpness=2.0)
WINS = jnp.array([[[0, 1, 1], [0, 0, 0], [0, 1, 0]]], bool)


def test_wide_margins_keep_clear_winners_and_their_losers():
    found = dno.wide_margins(WINS, dno.Config(margin=0.6))  # win rates 1, 0, 1/2
    np.testing.assert_array_equal(found.weight[0], [[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    found = dno.wide_margins(WINS, CONFIG)
    np.testing.assert_array_equal(found.weight[0], [[0, 1, 1], [0, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(found.probability, np.ones((1, 3, 3)))


def test_the_teachers_arms():
    restrictive = dno.teacher_wins(WINS, CONFIG)
    np.testing.assert_array_equal(restrictive.weight[0], [[0, 0, 0], [0, 0, 0], [0, 1, 0]])
    spin = dno.teacher_always(WINS, CONFIG)
    np.testing.assert_array_equal(spin.weight[0], [[0, 0, 0], [0, 0, 0], [1, 1, 0]])


def test_soft_labels_are_of_the_policys_own_samples():
    found = dno.soft_labels(WINS, CONFIG)
    np.testing.assert_array_equal(found.weight[0], [[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    # win rates 1 and 0 against each other
    np.testing.assert_allclose(found.probability[0, 0, 1], 1 / (1 + np.exp(-2.0)), rtol=1e-6)


def test_the_regression_is_least_at_the_exact_update():
    rate, eta = jnp.array([0.9, 0.5, 0.1]), 0.25
    first = jnp.array([[0.3, -0.2, 0.1]])
    batch = {
        "prompt": jnp.zeros(1, int),
        "response": jnp.arange(3)[None],
        "weight": jnp.triu(jnp.ones((1, 3, 3)), 1),
        "probability": jax.nn.sigmoid(rate[:, None] - rate)[None],
    }

    def value(logits):
        found = dno.pair_loss(eta)({"logits": logits}, batch, {"reference": {"logits": first}})
        return found.terms["preference"].value

    np.testing.assert_allclose(jax.grad(value)(first + rate / eta), np.zeros((1, 3)), atol=1e-6)
    assert np.abs(jax.grad(value)(first)).max() > 0.01


def test_numbers_of_iterates_by_hand():
    table = jnp.array([[[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]])
    frozen = {"table": table, "teacher": jnp.log(jnp.array([[1e-9, 1.0, 1e-9]]))}
    rock, paper = jnp.eye(3)[None, 0], jnp.eye(3)[None, 2]
    found = dno.curves(jnp.stack([rock, rock, paper, jnp.full((1, 3), 1 / 3)]), frozen)
    np.testing.assert_allclose(found["exploitability"], [0.4, 0.4, 0.0], atol=1e-6)
    # half rock, half paper: paper wins 0.7 of the time
    np.testing.assert_allclose(found["average_exploitability"], [0.4, 0.2, 2 / 15], atol=1e-6)
    np.testing.assert_allclose(found["improvement"], [0.5, 0.9, 0.5], atol=1e-6)
    np.testing.assert_allclose(found["versus_teacher"], [0.9, 0.1, 0.5], atol=1e-5)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return dno.EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize("arm", ["dno_prct", "bt_rlhf", "nash_exact"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = dno.EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    for claim in dno.EXPERIMENT.claims:
        assert claim.metric in metrics
