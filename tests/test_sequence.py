"""The mesh axis `sequence`: one long row on several devices."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.partitioning import constrain, time_shards
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.tasks.arithmetic import Arithmetic
from rewardjax.training.sharding import MeshConfig, make_mesh, state_shardings

CONFIG = TransformerConfig(
    vocab=24,
    layers=2,
    width=16,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp_width=32,
    context=64,
    spans=("local", "global"),
    window=6,
    scan=True,
    remat="full",
    attention_chunk=5,
    logit_chunk=7,
)
MODEL = LanguageModel(CONFIG)
SEGMENTS = jnp.array([[1] * 20 + [2] * 9 + [0] * 3, [0] * 5 + [1] * 27])
TOKENS = jax.random.randint(jax.random.key(1), SEGMENTS.shape, 1, 24)


def on(mesh, boxed_init, params):
    """The parameters, laid out on the mesh."""
    return jax.device_put(
        params, state_shardings(mesh, jax.eval_shape(boxed_init, jax.random.key(0)))
    )


@pytest.mark.parametrize("start", [0, 3])
def test_scores_and_gradients_of_divided_rows(start):
    """Chunks of 5 queries and 7 columns over 4 parts of 8 tokens; from column 3 on, 29 do not divide."""

    def loss(params, tokens, segments):
        found = MODEL.score(params, tokens, segments, start=start)
        weights = jnp.cos(jnp.arange(tokens.size).reshape(tokens.shape))
        return jnp.sum(weights * found[0] + found[1]), found

    run = jax.grad(loss, has_aux=True)
    params = jax.jit(MODEL.init)(jax.random.key(0))
    expected = jax.jit(run)(params, TOKENS, SEGMENTS)
    mesh = make_mesh(MeshConfig(fsdp=2, sequence=4))
    with jax.set_mesh(mesh):
        found = jax.jit(run)(on(mesh, MODEL.boxed_init, params), TOKENS, SEGMENTS)
        hidden, _ = jax.jit(MODEL.hidden)(params, TOKENS, SEGMENTS)
    chex.assert_trees_all_close(jax.device_get(found), jax.device_get(expected), atol=1e-4)
    assert hidden.sharding.shard_shape(hidden.shape) == (1, 8, 16)


@pytest.mark.parametrize("slots", [None, 4])
def test_generation_does_not_depend_on_it(slots):
    """Prompts of 6 columns are divided, the tokens that follow one by one are not."""
    task = Arithmetic(max_steps=1)
    model = LanguageModel(dataclasses.replace(CONFIG, spans=("global",)))
    policy = LanguagePolicy(
        model, max_new=6, stop=(task.eos,), group_size=2, prompt_columns=6, slots=slots
    )
    params = jax.jit(model.init)(jax.random.key(0))
    prompts = task.prompts(jax.random.key(2), 4)
    expected = jax.jit(policy.rollout)(params, prompts, jax.random.key(3))
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2, sequence=2))
    with jax.set_mesh(mesh):
        laid = on(mesh, model.boxed_init, params)
        found = jax.jit(policy.rollout)(laid, prompts, jax.random.key(3))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)


def test_time_that_does_not_divide_stays_whole():
    assert time_shards(8) == 1
    lay = jax.jit(lambda x: constrain(x, "batch", "time"))
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, sequence=4))):
        assert [time_shards(time) for time in (8, 6, 1)] == [4, 1, 1]
        for time, part in ((8, 2), (6, 6), (1, 1)):
            assert lay(jnp.zeros((4, time))).sharding.shard_shape((4, time)) == (2, part)
