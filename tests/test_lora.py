"""Low-rank adapters: what they change, what they leave alone, and training with them."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import credit, losses, rewards
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.lora import Lora, LoraConfig
from rewardjax.models.published import export_checkpoint, load_checkpoint
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import language_modelling
from rewardjax.recipes.policy_gradient import (
    PolicyGradient,
    PolicyGradientConfig,
    scored,
    with_reference,
)
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.run import Run
from rewardjax.training.sharding import MeshConfig, make_mesh, state_shardings
from rewardjax.trajectory import Prompts

CONFIG = TransformerConfig(
    vocab=16, layers=2, width=16, heads=2, kv_heads=2, head_dim=8, mlp_width=32, context=16
)
MODEL = LanguageModel(CONFIG)
SCANNED = LanguageModel(dataclasses.replace(CONFIG, scan=True))
KEY = jax.random.key(0)
TOKENS = jax.random.randint(KEY, (4, 8), 0, 16)
SEGMENTS = jnp.ones_like(TOKENS)


def changed(adapter):
    """The adapter with every number moved."""
    return jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), adapter)


@pytest.mark.parametrize("model", [MODEL, SCANNED], ids=["unrolled", "scanned"])
def test_the_change_by_hand(model):
    lora = Lora(model.boxed_init, LoraConfig(rank=3, alpha=6.0))
    params, fresh = model.init(KEY), lora.init(KEY)
    chex.assert_trees_all_equal(lora.merge(fresh, params), params)
    adapter = changed(fresh)
    merged = lora.merge(adapter, params)
    block = "groups/block_0" if model is SCANNED else "block_0"
    name = f"{block}/attention/query"
    assert len(fresh) == 7 * (1 if model is SCANNED else 2)
    a, b = (np.asarray(adapter[name][x]) for x in "ab")
    before, after = (jax.tree.map(np.asarray, tree) for tree in (params, merged))
    for part in name.split("/"):
        before, after = before[part], after[part]
    np.testing.assert_allclose(after, before + 2.0 * a @ b, atol=1e-6)
    np.testing.assert_array_equal(merged["embedding"], params["embedding"])


def test_targets_choose_and_are_checked():
    lora = Lora(MODEL.boxed_init, LoraConfig(targets=r"block_1/mlp/down"))
    assert list(lora.init(KEY)) == ["block_1/mlp/down"]
    with pytest.raises(ValueError, match=r"some of .*block_0/attention/query.* no match for 'qkv'"):
        Lora(MODEL.boxed_init, LoraConfig(targets="qkv")).init(KEY)
    with pytest.raises(ValueError, match="rank: expected at least 1, found 0"):
        LoraConfig(rank=0)


def test_gradients_reach_the_adapter_alone():
    lora = Lora(MODEL.boxed_init)
    params, adapter = MODEL.init(KEY), changed(lora.init(KEY))

    def loss(adapter, params):
        return jnp.sum(MODEL.score(lora.merge(adapter, params), TOKENS, SEGMENTS)[0])

    own, base = jax.jit(jax.grad(loss, argnums=(0, 1)))(adapter, params)
    assert all(float(jnp.max(jnp.abs(x))) > 0 for x in jax.tree.leaves(own))
    assert all(float(jnp.max(jnp.abs(x))) == 0 for x in jax.tree.leaves(base))


def test_on_a_mesh_the_merged_model_is_the_same():
    lora = Lora(SCANNED.boxed_init)
    params, adapter = SCANNED.init(KEY), changed(lora.init(KEY))

    def logprobs(adapter, params):
        return SCANNED.score(lora.merge(adapter, params), TOKENS, SEGMENTS)[0]

    expected = jax.jit(logprobs)(adapter, params)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    boxed = (jax.eval_shape(lora.boxed_init, KEY), jax.eval_shape(SCANNED.boxed_init, KEY))
    laid = jax.device_put((adapter, params), state_shardings(mesh, boxed))
    with jax.set_mesh(mesh):
        found = jax.jit(logprobs)(*laid)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_imitation_with_an_adapter(tmp_path):
    lora, params = Lora(MODEL.boxed_init), MODEL.init(KEY)
    batch = {"tokens": TOKENS, "valid": SEGMENTS == 1, "mask": SEGMENTS == 1}
    program = Supervised(
        SupervisedConfig(4, optimizer=OptimizerConfig(learning_rate=3e-2), loop=LoopConfig(30)),
        init=lora.boxed_init,
        loss=language_modelling(MODEL),
        assemble=lora.merge,
        batches=lambda key, n: batch,
    )
    with Run(tmp_path) as run:
        adapter = program.run(run, frozen=params).params
        curve = run.history("loss")
    assert curve[-1] < 0.5 * curve[0]
    assert adapter.keys() == lora.adapted.keys()


def test_policy_gradient_with_one_set_of_weights_as_policy_and_reference(tmp_path):
    lora, params = Lora(MODEL.boxed_init), MODEL.init(KEY)
    policy = LanguagePolicy(MODEL, max_new=4, stop=(0,), group_size=8, prompt_columns=4)
    close = losses.kl_to_reference(1e-3)
    loss = losses.policy_loss(surrogate=losses.clipped(0.2), regularisers=(close,))

    def prompts(key, n):
        tokens = jax.random.randint(key, (n, 4), 1, 16)
        return Prompts(tokens, tokens > 0)

    def reward(traj):
        sevens = jnp.mean((traj.tokens == 7) & traj.mask, axis=1)
        return rewards.outcome(sevens, traj.mask, name="sevens")

    program = PolicyGradient(
        PolicyGradientConfig(
            4, optimizer=OptimizerConfig(learning_rate=3e-2), loop=LoopConfig(30, evaluate_every=30)
        ),
        init=lora.boxed_init,
        rollout=policy.rollout,
        prompts=prompts,
        assemble=lora.merge,
        annotate=with_reference(policy.score),
        reward=reward,
        credit=lambda r, traj: credit.group_relative(r, traj, group_size=8),
        loss=scored(policy.score, loss),
        evaluate=lambda params, frozen, key: {"moved": jnp.sum(abs(params["embedding"]))},
    )
    with Run(tmp_path) as run:
        program.run(run, frozen=params)
        curve = run.history("reward")
        np.testing.assert_allclose(
            run.history("eval/moved")[0], jnp.sum(abs(params["embedding"])), rtol=1e-6
        )
    assert np.mean(curve[-5:]) > 3 * curve[0]


def test_a_merged_model_is_exported(tmp_path):
    pytest.importorskip("safetensors", reason="needs safetensors: rewardjax[hf]")
    lora, params = Lora(MODEL.boxed_init), MODEL.init(KEY)
    merged = lora.merge(changed(lora.init(KEY)), params)
    export_checkpoint(tmp_path / "out", CONFIG, merged)
    config, found = load_checkpoint(tmp_path / "out")
    assert config == CONFIG
    chex.assert_trees_all_equal(found, nn.meta.unbox(merged))
