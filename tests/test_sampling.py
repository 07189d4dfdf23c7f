"""Generation: exact log-probabilities, the right distribution, groups, stops and paddings."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.sampling import generate as generation
from rewardjax.sampling.best_of_n import best_of_n
from rewardjax.sampling.generate import keep_top_k, keep_top_p, sample_token
from rewardjax.trajectory import Prompts, left_pad, respond

generate = jax.jit(
    generation.generate,
    static_argnums=0,
    static_argnames=("max_new", "stop", "group_size", "temperature", "top_k", "top_p"),
)
score = jax.jit(LanguageModel.score, static_argnums=0, static_argnames=("temperature", "start"))
hidden = jax.jit(LanguageModel.hidden, static_argnums=0)

CONFIG = TransformerConfig(
    vocab=9, layers=2, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=24, context=32
)
MODEL = LanguageModel(CONFIG)
PARAMS = jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(0)))
TOKENS = jnp.array([[3, 4, 5, 6], [7, 8, 0, 0], [0, 3, 5, 7]])
VALID = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]], bool)
PROMPTS = Prompts(TOKENS, VALID, {"id": jnp.arange(3)})


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("scan", [False, True])
def test_behaviour_logprobs_equal_the_training_forward_pass(temperature, scan):
    model = LanguageModel(TransformerConfig(**{**vars(CONFIG), "scan": scan}))
    params = jax.tree.map(lambda x: 2 * x, model.init(jax.random.key(0)))
    traj = generate(
        model,
        params,
        PROMPTS,
        jax.random.key(1),
        max_new=7,
        stop=(1,),
        group_size=4,
        temperature=temperature,
    )
    segments = traj.valid.astype(jnp.int32)
    found, _ = score(model, params, traj.tokens, segments, temperature=temperature)
    np.testing.assert_allclose(jnp.where(traj.mask, found, 0), traj.logprobs, atol=1e-4)
    skipped, _ = score(model, params, traj.tokens, segments, temperature=temperature, start=4)
    np.testing.assert_allclose(jnp.where(traj.mask, skipped, 0), traj.logprobs, atol=1e-4)


def test_greedy_cached_decoding_equals_full_forward_passes():
    traj = generate(
        MODEL, PARAMS, PROMPTS, jax.random.key(1), max_new=6, stop=(1,), temperature=0.0
    )
    for row in range(3):
        sequence = [int(t) for t in TOKENS[row][VALID[row]]]
        written = []
        for _ in range(6):
            row_tokens = jnp.array([sequence + [0] * (10 - len(sequence))])
            segments = (jnp.arange(10) < len(sequence)).astype(jnp.int32)[None]
            states, _ = hidden(MODEL, PARAMS, row_tokens, segments)
            token = int(jnp.argmax(MODEL.unembed(PARAMS, states[0, len(sequence) - 1])))
            sequence.append(token)
            written.append(token)
            if token == 1:
                break
        assert traj.tokens[row][traj.mask[row]].tolist() == written


def test_groups_are_adjacent_and_keep_their_prompt():
    traj = generate(MODEL, PARAMS, PROMPTS, jax.random.key(2), max_new=5, stop=(1,), group_size=2)
    np.testing.assert_array_equal(traj.info["id"], [0, 0, 1, 1, 2, 2])
    tokens, valid = left_pad(TOKENS, VALID)
    np.testing.assert_array_equal(
        traj.tokens[:, :4], jnp.repeat(jnp.where(valid, tokens, 0), 2, axis=0)
    )
    assert not traj.mask[:, :4].any()
    one = generate(MODEL, PARAMS, PROMPTS, jax.random.key(2), max_new=1, stop=(1,))
    assert one.tokens.shape == (3, 5)


def test_a_response_ends_with_its_stop_token():
    stop = (1, 2, 3)
    traj = generate(MODEL, PARAMS, PROMPTS, jax.random.key(3), max_new=8, stop=stop, group_size=16)
    stopped = 0
    for tokens, mask in zip(np.asarray(traj.tokens), np.asarray(traj.mask)):
        response = tokens[mask]
        assert not np.isin(response[:-1], stop).any()
        assert mask[4:].sum() == len(response) == np.flatnonzero(mask[4:])[-1] + 1
        stopped += response[-1] in stop
        assert len(response) == 8 or response[-1] in stop
    assert stopped > 10


def test_samples_follow_the_model():
    key = jax.random.key(4)
    many = generate(
        MODEL,
        PARAMS,
        jax.tree.map(lambda x: x[:1], PROMPTS),
        key,
        max_new=1,
        stop=(),
        group_size=20_000,
    )
    states, _ = hidden(MODEL, PARAMS, TOKENS[:1], jnp.ones((1, 4), jnp.int32))
    expected = jax.nn.softmax(MODEL.unembed(PARAMS, states[0, -1]))
    shares = np.bincount(np.asarray(many.tokens[:, -1]), minlength=9) / 20_000
    np.testing.assert_allclose(shares, expected, atol=0.015)


def test_top_k_and_top_p_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.1]]))
    np.testing.assert_array_equal(jnp.isfinite(keep_top_k(logits, 2)), [[1, 1, 0, 0]])
    np.testing.assert_array_equal(jnp.isfinite(keep_top_p(logits, 0.5)), [[1, 0, 0, 0]])
    np.testing.assert_array_equal(jnp.isfinite(keep_top_p(logits, 0.8)), [[1, 1, 1, 0]])
    sample = partial(sample_token, temperature=1.0, top_k=3, top_p=0.9)
    keys = jax.random.split(jax.random.key(0), 200)
    tokens, logprobs = jax.vmap(lambda k: sample(k, logits))(keys)
    assert set(np.asarray(tokens).ravel().tolist()) == {0, 1, 2}
    np.testing.assert_allclose(logprobs, logits[0][tokens], rtol=1e-5)


def test_padding_side_does_not_change_a_response():
    left = jnp.array([[0, 0, 7, 8]]), jnp.array([[0, 0, 1, 1]], bool)
    right = jnp.array([[7, 8, 5, 5]]), jnp.array([[1, 1, 0, 0]], bool)
    a, b = (
        generate(MODEL, PARAMS, Prompts(*x), jax.random.key(5), max_new=6, stop=(1,))
        for x in (left, right)
    )
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-6)


def test_a_context_too_short_for_prompt_and_response_is_an_error():
    with pytest.raises(ValueError, match="longer than the model's context=32"):
        generate(MODEL, PARAMS, PROMPTS, jax.random.key(0), max_new=29, stop=(1,))


def test_best_of_n_keeps_the_best_row_of_each_group():
    traj = respond(PROMPTS, TOKENS, VALID)
    traj = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), traj).with_info(score=jnp.arange(6.0))
    best = best_of_n(traj, jnp.array([1.0, 2.0, 5.0, 5.0, 3.0, -1.0]), 2)
    np.testing.assert_array_equal(best.info["score"], [1, 2, 4])


def test_given_responses_become_trajectories_without_gaps():
    prompts = Prompts(jnp.array([[3, 4, 0]]), jnp.array([[1, 1, 0]], bool))
    traj = respond(prompts, jnp.array([[0, 5, 6]]), jnp.array([[0, 1, 1]], bool))
    np.testing.assert_array_equal(traj.tokens[0][traj.valid[0]], [3, 4, 5, 6])
    np.testing.assert_array_equal(traj.mask[0], [0, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(traj.valid[0], [0, 1, 1, 1, 1, 0])
