"""TEMPO: what the experiment measures by hand, and arms for a few steps."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reasoning.tempo import EXPERIMENT
from rewardjax import credit
from rewardjax.recipes.credit_quality import credit_quality, credit_watch
from rewardjax.training.run import Run
from rewardjax.trajectory import Trajectory

SMOKE = EXPERIMENT.scales["smoke"]


MASK = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
RIGHT = jnp.array([[0, 1, 0, 0], [0, 1, 0, 0]], bool)
WRONG = jnp.array([[0, 0, 0, 1], [0, 0, 0, 0]], bool)


def test_credit_quality_by_hand():
    advantages = jnp.array([[0.0, 2.0, 0.0, -2.0], [1.0, 4.0, 1.0, 9.0]])
    found = credit_quality(advantages, MASK, RIGHT, WRONG)
    # deviations 0 2 0 2 and, around 2, 1 2 1: of 8 in all 6 at decisions.
    np.testing.assert_allclose(found["at_decisions"].value, 6 / 8, rtol=1e-6)
    # only the first row has decisions of both kinds
    np.testing.assert_allclose(found["spared"].value, 4.0, rtol=1e-6)


def test_one_advantage_a_row_has_no_concentration_at_all():
    advantages = jnp.where(MASK, jnp.array([[0.1], [0.7]]), 0.0)
    found = credit_quality(advantages, MASK, RIGHT, WRONG)
    assert float(found["at_decisions"].weight) == 0
    assert float(found["at_decisions"].value) == 0
    assert float(found["spared"].value) == 0


def test_branching_is_the_share_of_steps_where_responses_part():
    tokens = jnp.array([[1, 2, 3, 4], [1, 2, 5, 4]])
    mask = jnp.ones((2, 4), bool)
    traj = Trajectory(tokens, mask, mask, jnp.zeros((2, 4)))
    none = jnp.zeros((2, 4), bool)
    watch = credit_watch(credit.discounted_returns, lambda traj: (none, none), 2)
    rewards = jnp.zeros((2, 4)).at[0, 3].set(1.0)
    state, found = watch.update(watch.init(None), traj, rewards, None)
    assert state == {}
    assert float(found["branching"].value) == 1 / 4


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize("arm", ["tempo", "td_only", "ppo"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
        assert run.stage("rl").history("eval/accuracy").shape == (2,)
    assert all(np.isfinite(x) for x in metrics.values())
    for claim in EXPERIMENT.claims:
        assert claim.metric in metrics
    assert metrics["updates_to_target"] == 4  # not reached: the length of the run
    assert (tmp_path / "rl" / "samples.jsonl").read_text().count("\n") == 8


def test_data_that_are_not_generated_are_refused():
    with pytest.raises(ValueError, match=r"expected 'decision_tree'.*found 'MATH'"):
        EXPERIMENT.prepare(EXPERIMENT.scales["paper"])
