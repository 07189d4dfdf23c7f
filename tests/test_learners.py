"""Models trained beside a policy: what they say and learn does not depend on how a batch is cut."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.critic import critic, token_values
from rewardjax.recipes.implicit_reward import implicit_process_reward
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.state import in_cuts
from rewardjax.trajectory import Trajectory

ROWS, TIME = 8, 6
CONFIG = TransformerConfig(vocab=11, layers=1, width=16, heads=2, kv_heads=2, head_dim=8)
SCORER, MODEL = RewardModel(CONFIG), LanguageModel(CONFIG)
OPTIMIZER = OptimizerConfig("sgd", learning_rate=0.1)  # linear in the gradient


def last_value(params, traj):
    """A bootstrap that differs from row to row."""
    return token_values(SCORER)(params, traj)[:, -1] + traj.lengths


def a_critic(micro_batches, **settings):
    return critic(SCORER, OPTIMIZER, 3, micro_batches=micro_batches, **settings)


def a_process_reward_model(micro_batches):
    return implicit_process_reward(MODEL, OPTIMIZER, 3, beta=1.0, micro_batches=micro_batches)


LEARNERS = {
    "critic": a_critic,
    "critic of drawn rows": partial(a_critic, bootstrap=last_value, updates=2, rows=4),
    "process reward model": a_process_reward_model,
}


def rollouts():
    """Responses of one to five tokens, so that the cuts weigh differently; the last row has none."""
    token_key, reference_key, reward_key = jax.random.split(jax.random.key(0), 3)
    steps, lengths = jnp.arange(TIME), jnp.array([5, 1, 4, 2, 3, 5, 1, 0])
    valid = steps < 1 + lengths[:, None]
    reference = jax.random.normal(reference_key, (ROWS, TIME)) - 2.0
    tokens = jax.random.randint(token_key, (ROWS, TIME), 0, CONFIG.vocab)
    traj = Trajectory(tokens, valid & (steps > 0), valid, reference)
    rewards = jax.random.bernoulli(reward_key, 0.5, (ROWS,))
    return traj.with_info(reference_logprobs=reference), rewards[:, None] * (steps == 1.0)


def learned(learner):
    """The state, the trajectory and the metrics of two batches."""
    traj, rewards = rollouts()

    @jax.jit
    def step(state, key):
        state, observed, _ = learner.observe(state, traj, key)
        state, metrics = learner.update(state, observed, rewards.astype(jnp.float32), key)
        return state, observed, {name: mean.value for name, mean in metrics.items()}

    state = learner.init(jax.random.key(1))
    state, *first = step(state, jax.random.key(2))
    state, *second = step(state, jax.random.key(3))
    return state, first, second


@pytest.mark.parametrize("kind", LEARNERS)
def test_cuts_change_nothing(kind):
    whole, cut = (learned(LEARNERS[kind](n)) for n in (1, 4))
    chex.assert_trees_all_close(cut, whole, rtol=1e-5, atol=1e-6)
    before = LEARNERS[kind](1).init(jax.random.key(1)).params
    moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), before, whole[0].params)
    assert max(map(float, jax.tree.leaves(moved))) > 1e-3


@pytest.mark.parametrize("kind", ["critic", "process reward model"])
def test_cuts_must_be_equal(kind):
    traj, _ = rollouts()
    learner = LEARNERS[kind](3)
    with pytest.raises(ValueError, match=r"micro_batches.* divide a batch of 8 rows, found 3"):
        learner.observe(learner.init(jax.random.key(1)), traj, None)


def test_one_cut_is_in_memory_at_a_time():
    seen = []

    def double(batch):
        seen.append(batch["x"].shape)
        return {"twice": 2 * batch["x"]}

    batch = {"x": jnp.arange(12.0).reshape(6, 2)}
    chex.assert_trees_all_equal(in_cuts(double, batch, 3), {"twice": 2 * batch["x"]})
    chex.assert_trees_all_equal(in_cuts(double, batch), {"twice": 2 * batch["x"]})
    assert seen == [(2, 2), (6, 2)]
