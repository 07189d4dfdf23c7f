"""Several heads on a backbone: mixtures of logits against their definition, and guided decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.evaluation.fronts import hypervolume
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.multi_head import MultiHead
from rewardjax.models.transformer import TransformerConfig
from rewardjax.sampling.generate import generate
from rewardjax.sampling.guided import generate_guided
from rewardjax.trajectory import Prompts

MODEL = LanguageModel(
    TransformerConfig(
        vocab=8,
        layers=1,
        width=8,
        heads=1,
        kv_heads=1,
        head_dim=8,
        mlp_width=16,
        context=16,
        tied_embeddings=False,
    )
)
HEADS = MultiHead(MODEL, 3, spread=0.5)
PARAMS = MODEL.init(jax.random.key(0))
TOKENS = jnp.array([[1, 4, 6], [1, 3, 5]])
SEGMENTS = jnp.ones_like(TOKENS)


def test_a_mixture_adds_logits_with_weights_of_sum_1():
    params = HEADS.start(PARAMS, jax.random.key(1))
    each = [np.asarray(MODEL.logits(HEADS.head(params, i), TOKENS, SEGMENTS)) for i in range(3)]
    assert np.max(np.abs(each[0] - each[1])) > 0.1
    found = MODEL.logits(HEADS.mixed(params, jnp.array([2.0, 1.0, 1.0])), TOKENS, SEGMENTS)
    expected = 0.5 * each[0] + 0.25 * each[1] + 0.25 * each[2]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    alone = MODEL.logits(HEADS.mixed(params, jnp.array([0.0, 1.0, 0.0])), TOKENS, SEGMENTS)
    np.testing.assert_allclose(alone, each[1], rtol=1e-5)


def test_heads_start_at_the_models_own_matrix_with_noise_of_their_own():
    own = PARAMS["unembedding"]
    exact = dataclasses.replace(HEADS, spread=0.0).start(PARAMS, jax.random.key(1))
    np.testing.assert_array_equal(exact["heads"], jnp.stack([own] * 3))
    noise = HEADS.start(PARAMS, jax.random.key(1))["heads"] - own
    np.testing.assert_allclose(jnp.std(noise, axis=(1, 2)), 0.5, rtol=0.3)
    fresh = HEADS.boxed_init(jax.random.key(2))
    assert fresh["heads"].names == (None, "embed", "vocab")
    assert fresh["heads"].value.shape == (3, 8, 8)
    assert "unembedding" not in fresh["backbone"]


def test_tied_embeddings_and_no_head_are_refused():
    tied = LanguageModel(dataclasses.replace(MODEL.config, tied_embeddings=True))
    with pytest.raises(ValueError, match="expected tied_embeddings=False"):
        MultiHead(tied, 2)
    with pytest.raises(ValueError, match="heads: expected at least 1, found 0"):
        MultiHead(MODEL, 0)


def test_hypervolume_of_a_staircase():
    points = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [1.5, 1.5], [9.0, -1.0]])
    assert hypervolume(points, np.zeros(2)) == pytest.approx(3 + 2 + 1)
    assert hypervolume(points, np.array([0.0, 2.0])) == pytest.approx(1)
    assert hypervolume(points, np.full(2, 10.0)) == 0.0
    with pytest.raises(ValueError, match="expected finite"):
        hypervolume(np.array([[np.nan, 1.0]]), np.zeros(2))


PROMPTS = Prompts(jnp.array([[0, 1, 2], [1, 3, 2]]), jnp.array([[False, True, True], [True] * 3]))
STOP = 7


def guided(value, *, candidates=4, chunk=2):
    sizes = {"candidates": candidates, "chunk": chunk, "max_new": 6}
    key = jax.random.key(3)
    return generate_guided(MODEL, PARAMS, PROMPTS, key, value, **sizes, stop=(STOP,))


def fives(tokens, valid):
    return jnp.sum((tokens == 5) & valid, axis=1).astype(jnp.float32)


def test_guided_decoding_prefers_what_the_value_likes():
    chosen, plain = guided(fives), guided(fives, candidates=1)
    assert jnp.sum(fives(chosen.tokens, chosen.mask)) > jnp.sum(fives(plain.tokens, plain.mask))
    for traj in (chosen, plain):
        np.testing.assert_array_equal(traj.tokens[:, :3], PROMPTS.tokens)
        np.testing.assert_array_equal(traj.valid[:, :3], PROMPTS.valid)
        # The kept clone's cache is its own: log-probabilities are those of its text.
        scored, _ = MODEL.score(PARAMS, traj.tokens, traj.valid.astype(jnp.int32))
        np.testing.assert_allclose(
            jnp.where(traj.mask, scored, 0.0), traj.logprobs, rtol=1e-4, atol=1e-5
        )
        ended = jnp.cumsum(traj.mask & (traj.tokens == STOP), axis=1) > 0
        assert not np.any(np.asarray(ended[:, :-1] & traj.mask[:, 1:]))


def test_one_candidate_is_sampling():
    key = jax.random.key(3)
    sampled = generate(MODEL, PARAMS, PROMPTS, key, max_new=6, stop=(STOP,))
    alone = guided(fives, candidates=1)
    np.testing.assert_array_equal(alone.tokens, sampled.tokens)
    np.testing.assert_array_equal(alone.mask, sampled.mask)
    np.testing.assert_allclose(alone.logprobs, sampled.logprobs, rtol=1e-5, atol=1e-6)


def test_boundaries_have_to_fit():
    with pytest.raises(ValueError, match="max_new: expected a multiple of chunk=4, found 6"):
        guided(fives, chunk=4)
