"""PRIME: the learner by hand, and arms for a few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reasoning.prime import EXPERIMENT
from rewardjax.evaluation.verification import ranking_auc, roc_auc
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.credit_quality import slip_auc
from rewardjax.recipes.implicit_reward import implicit_process_reward, outcome_likelihood
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.run import Run
from rewardjax.training.sharding import initial_state
from rewardjax.trajectory import Trajectory

SMOKE = EXPERIMENT.scales["smoke"]
MODEL = LanguageModel(
    TransformerConfig(vocab=11, layers=1, width=16, heads=2, kv_heads=2, head_dim=8)
)


def rollouts(rows=4, time=5):
    tokens = jax.random.randint(jax.random.key(0), (rows, time), 0, 11)
    mask = jnp.broadcast_to(jnp.arange(time) >= 2, (rows, time)).at[0, -1].set(False)
    valid = jnp.ones((rows, time), bool).at[0, -1].set(False)
    reference = 0.1 * jax.random.normal(jax.random.key(1), (rows, time)) - 2.0
    traj = Trajectory(tokens, mask, valid, reference)
    return traj.with_info(reference_logprobs=reference)


def test_rewards_are_log_ratios_to_the_reference_and_fit_outcomes_afterwards():
    traj = rollouts()
    learner = implicit_process_reward(MODEL, OptimizerConfig(learning_rate=1e-2), 50, beta=1.0)
    start = MODEL.init(jax.random.key(2))
    state = learner.init(jax.random.key(3), start)
    state, observed, _ = learner.observe(state, traj, None)
    logprobs, _ = MODEL.score(start, traj.tokens, traj.valid.astype(jnp.int32))
    expected = np.where(traj.mask, logprobs - traj.info["reference_logprobs"], 0.0)
    np.testing.assert_allclose(observed.info["process_rewards"], expected, atol=1e-5)
    rewards = jnp.zeros(traj.mask.shape).at[:, 3].set(jnp.array([1.0, 0.0, 1.0, 0.0]))
    update = jax.jit(learner.update)
    for _ in range(30):
        state, metrics = update(state, observed, rewards, None)
    assert metrics["loss"].value < 0.2
    _, observed, _ = learner.observe(state, traj, None)
    _, metrics = update(state, observed, rewards, None)
    assert metrics["auc"].value == 1.0


def test_a_frozen_one_stays():
    traj = rollouts()
    learner = implicit_process_reward(MODEL, OptimizerConfig(), 50, beta=1.0, frozen=True)
    state = learner.init(jax.random.key(3))
    state, observed, _ = learner.observe(state, traj, None)
    after, metrics = learner.update(state, observed, jnp.zeros(traj.mask.shape), None)
    assert set(metrics) == {"auc"}
    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(before, now)


def test_rows_left_out_give_no_loss():
    traj = rollouts()
    batch = {
        "tokens": traj.tokens,
        "valid": traj.valid,
        "mask": traj.mask.at[1].set(False),
        "reference_logprobs": traj.info["reference_logprobs"],
        "correct": jnp.array([1.0, 1.0, 0.0, 0.0]),
    }
    params = MODEL.init(jax.random.key(2))
    loss = outcome_likelihood(MODEL, 0.5)
    term = loss(params, batch).terms["outcome"]
    assert term.weight == 3
    # By hand: softplus of the signed sums.
    logprobs, _ = MODEL.score(params, traj.tokens, traj.valid.astype(jnp.int32))
    sums = 0.5 * np.sum(np.where(batch["mask"], logprobs - batch["reference_logprobs"], 0), axis=1)
    signs = np.array([-1.0, 1.0, 1.0])
    expected = np.log1p(np.exp(signs * sums[[0, 2, 3]])).mean()
    np.testing.assert_allclose(term.value, expected, rtol=1e-5)


def test_auc_is_that_of_the_ranking_statistic():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, 40).astype(np.float32)
    positive, counted = rng.random(40) < 0.4, rng.random(40) < 0.8
    found = ranking_auc(jnp.asarray(scores), jnp.asarray(positive), jnp.asarray(counted))
    np.testing.assert_allclose(found.value, roc_auc(scores[counted], positive[counted]), rtol=1e-6)
    none = ranking_auc(jnp.asarray(scores), jnp.zeros(40, bool), jnp.ones(40, bool))
    assert none.weight == 0


def test_steps_after_the_first_wrong_one_do_not_count():
    values = jnp.array([[1.0, 0.0, 9.0, 9.0], [2.0, 3.0, 9.0, 0.5]])
    steps = jnp.array([[True, True, True, False], [True, True, False, True]])
    right = jnp.array([[True, False, False, False], [True, True, False, False]])
    # Right: 1, 2, 3; first wrong ones: 0 and 0.5. All six pairs are in order.
    assert slip_auc(values, right, steps).value == 1.0
    worse = values.at[1, 3].set(1.5)  # above one of three
    np.testing.assert_allclose(slip_auc(worse, right, steps).value, 5 / 6, rtol=1e-6)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with Run(tmp_path_factory.mktemp("prepare"), 0, "prepare") as run:
        return EXPERIMENT.prepare(SMOKE)(run)


@pytest.mark.parametrize("name", ["rloo", "prime"])
def test_arms_run(name, shared, tmp_path):
    with Run(tmp_path, 0, name) as run:
        found = EXPERIMENT.arms[name].build(SMOKE)(run, shared)
    assert all(np.isfinite(value) for value in found.values())
    assert ("prm_auc" in found) == (name != "rloo")


def test_a_start_of_no_learner_is_refused(shared, tmp_path):
    with pytest.raises(ValueError, match=r"starts: expected some of \[\], found \['prm'\]"):
        initial_state(None, None, None, jax.random.key(0), starts={"prm": shared})
