"""The transformer against an independent NumPy forward pass, and its invariances."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.models.attention import positions_of
from rewardjax.models.heads import RewardModel, last_valid
from rewardjax.models.language_model import LanguageModel, scored_mask
from rewardjax.models.transformer import TransformerConfig

score = jax.jit(LanguageModel.score, static_argnums=0)
logits = jax.jit(LanguageModel.logits, static_argnums=0)
reward = jax.jit(RewardModel.score, static_argnums=0)

SMALL = TransformerConfig(
    vocab=11, layers=2, width=16, heads=4, kv_heads=2, head_dim=4, mlp_width=24, context=16
)
VARIANTS = {
    "llama": SMALL,
    "qwen": dataclasses.replace(SMALL, qk_norm=True, qkv_bias=True, tied_embeddings=False),
    "gemma": dataclasses.replace(
        SMALL,
        gate="gelu",
        post_norm=True,
        unit_offset=True,
        embedding_scale=True,
        attention_softcap=5.0,
        logit_softcap=3.0,
        spans=("local", "global"),
        window=3,
        local_rope_base=100.0,
    ),
}


def perturbed(model, key):
    """Parameters away from the symmetric start of norms and biases."""
    params = jax.jit(model.init)(key)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    return jax.tree.unflatten(tree, noisy)


def reference_logits(c, params, tokens):
    """Logits after each token of one unpadded row, in NumPy, written from the papers' equations."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    time = len(tokens)

    def norm(x, scale):
        scale = scale["scale"] + (1 if c.unit_offset else 0)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon) * scale

    def rope(x, base):
        half = c.head_dim // 2
        z = x[..., :half] + 1j * x[..., half:]
        z = z * np.exp(1j * np.arange(time)[:, None, None] * base ** (-np.arange(half) / half))
        return np.concatenate([z.real, z.imag], -1)

    def activation(x):
        if c.gate == "silu":
            return x / (1 + np.exp(-x))
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x = p["embedding"][tokens] * (np.sqrt(c.width) if c.embedding_scale else 1)
    for i in range(c.layers):
        b, span = p[f"block_{i}"], c.spans[i % len(c.spans)]
        a, h = b["attention"], norm(x, b["attention_norm"])
        q, k, v = (
            (h @ a[n] + (a[f"{n}_bias"] if c.qkv_bias else 0)).reshape(time, -1, c.head_dim)
            for n in ("query", "key", "value")
        )
        if c.qk_norm:
            q, k = norm(q, a["query_norm"]), norm(k, a["key_norm"])
        base = c.local_rope_base if span == "local" and c.local_rope_base else c.rope_base
        q, k = rope(q, base), rope(k, base)
        out = np.zeros((time, c.heads, c.head_dim))
        for t in range(time):
            low = max(0, t - c.window + 1) if span == "local" else 0
            for head in range(c.heads):
                kv = head // (c.heads // c.kv_heads)
                s = k[low : t + 1, kv] @ q[t, head] * c.head_dim**-0.5
                if c.attention_softcap:
                    s = c.attention_softcap * np.tanh(s / c.attention_softcap)
                w = np.exp(s - s.max())
                out[t, head] = (w / w.sum()) @ v[low : t + 1, kv]
        y = out.reshape(time, -1) @ a["out"]
        x = x + (norm(y, b["attention_post_norm"]) if c.post_norm else y)
        h, m = norm(x, b["mlp_norm"]), b["mlp"]
        y = (activation(h @ m["gate"]) * (h @ m["up"])) @ m["down"]
        x = x + (norm(y, b["mlp_post_norm"]) if c.post_norm else y)
    x = norm(x, p["final_norm"])
    logits = x @ (p["embedding"].T if c.tied_embeddings else p["unembedding"])
    return c.logit_softcap * np.tanh(logits / c.logit_softcap) if c.logit_softcap else logits


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_a_numpy_forward_pass(name):
    config = VARIANTS[name]
    model = LanguageModel(config)
    params = perturbed(model, jax.random.key(0))
    tokens = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    found = logits(model, params, jnp.asarray(tokens)[None], jnp.ones((1, 8), jnp.int32))[0]
    expected = reference_logits(config, params, tokens)
    np.testing.assert_allclose(found[1:], expected[:-1], atol=2e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_scanned_layers_equal_unrolled_ones(name):
    config = VARIANTS[name]
    unrolled = LanguageModel(config)
    scanned = LanguageModel(dataclasses.replace(config, scan=True, remat="full"))
    params = perturbed(unrolled, jax.random.key(1))
    period = len(config.spans)
    groups = {
        f"block_{j}": jax.tree.map(
            lambda *x: jnp.stack(x),
            *[params[f"block_{i}"] for i in range(j, config.layers, period)],
        )
        for j in range(period)
    }
    rest = {k: v for k, v in params.items() if not k.startswith("block_")}
    tokens = jax.random.randint(jax.random.key(2), (2, 7), 0, config.vocab)
    segments = jnp.ones_like(tokens)
    chex.assert_trees_all_close(
        logits(unrolled, params, tokens, segments),
        logits(scanned, {**rest, "groups": groups}, tokens, segments),
        atol=1e-5,
    )


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_fused_attention_changes_no_logits(name):
    plain = LanguageModel(VARIANTS[name])
    fused = LanguageModel(dataclasses.replace(VARIANTS[name], attention="fused", attention_chunk=3))
    params = perturbed(plain, jax.random.key(1))
    tokens = jax.random.randint(jax.random.key(2), (2, 7), 0, SMALL.vocab)
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
    found = logits(fused, params, tokens, segments)
    chex.assert_trees_all_close(found, logits(plain, params, tokens, segments), atol=1e-5)
    program = jax.jit(fused.logits).trace(params, tokens, segments)
    assert "@tpu_custom_call" in program.lower(lowering_platforms=("tpu",)).as_text()


def test_packed_documents_do_not_see_each_other():
    model = LanguageModel(SMALL)
    params = perturbed(model, jax.random.key(3))
    a, b = jnp.array([[3, 1, 4, 1]]), jnp.array([[5, 9, 2]])
    packed = jnp.concatenate([a, b, jnp.zeros((1, 2), jnp.int32)], axis=1)
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]])
    np.testing.assert_array_equal(positions_of(segments)[0], [0, 1, 2, 3, 0, 1, 2, 0, 0])
    np.testing.assert_array_equal(scored_mask(segments)[0], [0, 1, 1, 1, 0, 1, 1, 0, 0])
    together, _ = score(model, params, packed, segments)
    apart = [score(model, params, x, jnp.ones_like(x))[0] for x in (a, b)]
    expected = jnp.concatenate([*apart, jnp.zeros((1, 2))], axis=1)
    chex.assert_trees_all_close(together, expected, atol=1e-5)


def test_score_does_not_depend_on_padding_batch_or_order():
    scorer = RewardModel(dataclasses.replace(SMALL, spans=("local", "global"), window=3))
    params = scorer.init(jax.random.key(4))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(5), (16, 1))
    row = jnp.array([3, 1, 4, 1, 5])
    alone = reward(scorer, params, row[None], jnp.ones((1, 5), bool))[0]
    for left, right in [(0, 4), (4, 0), (2, 2)]:
        tokens = jnp.pad(row, (left, right), constant_values=7)
        valid = (jnp.arange(tokens.size) >= left) & (jnp.arange(tokens.size) < left + 5)
        others = jax.random.randint(jax.random.key(6), (3, tokens.size), 0, 11)
        batch = jnp.concatenate([others, tokens[None]])
        valids = jnp.concatenate([jnp.ones((3, tokens.size), bool), valid[None]])
        scores = reward(scorer, params, batch, valids)
        np.testing.assert_allclose(scores[3], alone, atol=1e-5)
        np.testing.assert_allclose(
            reward(scorer, params, batch[::-1], valids[::-1]), scores[::-1], atol=1e-5
        )


def test_last_valid_comes_from_the_mask():
    values = jnp.arange(8.0).reshape(2, 4)
    valid = jnp.array([[1, 1, 0, 0], [0, 1, 1, 1]], bool)
    np.testing.assert_array_equal(last_valid(values, valid), [1, 7])


def test_entropy_and_logprobs_of_a_uniform_model():
    model = LanguageModel(dataclasses.replace(SMALL, tied_embeddings=False))
    params = model.init(jax.random.key(7))
    params["unembedding"] = jnp.zeros_like(params["unembedding"])
    tokens = jnp.array([[1, 2, 3, 0]])
    logprobs, entropy = score(model, params, tokens, jnp.array([[1, 1, 1, 0]]))
    np.testing.assert_allclose(logprobs[0], [0, -np.log(11), -np.log(11), 0], rtol=1e-6)
    np.testing.assert_allclose(entropy[0], [0, np.log(11), np.log(11), 0], rtol=1e-6)


def test_too_long_a_sequence_is_an_error():
    model = LanguageModel(SMALL)
    tokens = jnp.zeros((1, 17), jnp.int32)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="17 tokens is longer than the model's context=16"):
        model.score(params, tokens, jnp.ones_like(tokens))


def test_sizes_that_do_not_divide_are_errors():
    with pytest.raises(ValueError, match="heads=4 is not a multiple of 3"):
        TransformerConfig(heads=4, kv_heads=3)


def test_every_parameter_names_its_axes():
    boxed = LanguageModel(VARIANTS["qwen"]).boxed_init(jax.random.key(0))
    boxes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert all(
        isinstance(x, nn.LogicallyPartitioned) and len(x.names) == x.value.ndim for x in boxes
    )


def test_gradient_with_respect_to_padding_is_zero():
    model = LanguageModel(SMALL)
    params = perturbed(model, jax.random.key(8))
    tokens = jnp.array([[0, 0, 3, 1, 4, 0]])
    valid = jnp.array([[0, 0, 1, 1, 1, 0]])

    def loss(embedding):
        return jnp.sum(score(model, {**params, "embedding": embedding}, tokens, valid)[0])

    def padded_with(token):
        return score(model, params, jnp.where(valid == 1, tokens, token), valid)[0]

    np.testing.assert_allclose(padded_with(0), padded_with(9), atol=1e-6)
    assert np.isfinite(jax.grad(loss)(params["embedding"])).all()
