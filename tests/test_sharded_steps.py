"""Whole training steps on eight devices and on one."""

from functools import partial

import chex
import jax
import pytest
from test_training import (
    MODEL,
    SCORER,
    bradley_terry,
    policy_program,
    preferences,
    reward_program,
)

from rewardjax import credit
from rewardjax.recipes.critic import critic
from rewardjax.recipes.objectives import direct_preference
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig


def preference_program(mesh=None):
    config = SupervisedConfig(
        batch_size=8, optimizer=OptimizerConfig(learning_rate=1e-2), mesh=mesh or MeshConfig()
    )
    return Supervised(config, init=MODEL.boxed_init, loss=direct_preference(MODEL, bradley_terry))


def ppo_program(mesh=None):
    learner = critic(SCORER, OptimizerConfig(learning_rate=1e-2), 3)
    return policy_program(mesh, rate=1e-4, learners={"critic": learner}, credit=credit.gae)


PROGRAMS = {
    "reward_model": reward_program,
    "dpo": preference_program,
    "grpo": partial(policy_program, rate=1e-4),
    "ppo": ppo_program,
}


WITHOUT_SEQUENCE = MeshConfig(2, 2, 2)
CASES = [*((kind, WITHOUT_SEQUENCE) for kind in PROGRAMS), ("dpo", MeshConfig(1, 2, 2, 2))]


@pytest.mark.parametrize(("kind", "wanted"), CASES)
def test_one_device_and_eight_agree(kind, wanted):
    """2 x 2 x 2 devices (data or sequence, fsdp, tensor) and one: the same parameters to 1e-5."""
    found = []
    for mesh in (MeshConfig(), wanted):
        program = PROGRAMS[kind](mesh)
        state = program.start(jax.random.key(0))
        time = 9 if wanted.sequence == 1 else 10
        pairs = {k: v[:8] for k, v in preferences(time=time).items()}
        batch = pairs if kind in ("reward_model", "dpo") else None
        frozen = MODEL.init(jax.random.key(1)) if kind == "dpo" else None
        with jax.set_mesh(program.mesh) if program.mesh else jax.default_device(jax.devices()[0]):
            step = jax.jit(program.step)
            for i in range(2):
                state, metrics = step(state, batch, frozen, jax.random.key(i))
        if program.mesh:
            spread = {len(x.sharding.device_set) for x in jax.tree.leaves(state.params)}
            assert spread == {8}
            assert all(
                not x.sharding.is_fully_replicated
                for x in jax.tree.leaves(state.params)
                if x.ndim == 2 and min(x.shape) > 1
            )
        found.append((jax.device_get(state), float(metrics["loss"].value)))
    chex.assert_trees_all_close(found[0], found[1], atol=1e-5)
