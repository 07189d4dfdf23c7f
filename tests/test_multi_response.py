"""Several responses in one forward pass: packing by hand, and scores against those of single rows."""

import dataclasses
import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.models.heads import RewardModel
from rewardjax.models.multi_response import (
    MultiResponse,
    average_over_orders,
    in_rows,
    mean_state,
    pack,
    reorder,
)
from rewardjax.models.transformer import TransformerConfig

CONFIG = TransformerConfig(
    vocab=11,
    layers=2,
    width=16,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp_width=24,
    context=24,
    spans=("local", "global"),
    window=3,
)
MODEL = RewardModel(CONFIG, outputs=2, spread=0.5)
SEPARATOR = 9
PROMPT = jnp.array([[0, 1, 2], [3, 0, 0]])
PROMPT_VALID = jnp.array([[0, 1, 1], [1, 0, 0]], bool)
RESPONSES = jnp.array([[[4, 5, 0], [6, 0, 0], [7, 8, 4]], [[5, 6, 0], [0, 0, 0], [0, 8, 0]]])
VALID = jnp.array([[[1, 1, 0], [1, 0, 0], [1, 1, 1]], [[1, 1, 0], [0, 0, 0], [0, 1, 0]]], bool)
LISTS = PROMPT, PROMPT_VALID, RESPONSES, VALID
PRESENT = np.array([[1, 1, 1], [1, 0, 1]], bool)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


@partial(jax.jit, static_argnames="model")
def single(params, prompt, prompt_valid, responses, valid, model=MODEL):
    """The scores of the rows prompt and response."""
    tokens, held, _ = in_rows(prompt, prompt_valid, responses, valid)
    return model.scores(params, tokens, held)


def test_rows_of_their_own_have_no_gap():
    tokens, held, own = in_rows(*LISTS)
    np.testing.assert_array_equal(tokens[0, 2], [0, 1, 2, 7, 8, 4])
    np.testing.assert_array_equal(held[0, 2], [0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(tokens[1, 2][held[1, 2]], [3, 8])
    np.testing.assert_array_equal(held[1, 2], [0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(own[1], [[0, 0, 0, 1, 1, 0], [0] * 6, [0, 0, 0, 1, 0, 0]])


def test_rows_have_a_separator_between_responses_that_are_present():
    packed = pack(*LISTS, SEPARATOR)
    np.testing.assert_array_equal(
        packed.tokens[0], [1, 2, 4, 5, 9, 6, 9, 7, 8, 4, *packed.tokens[0, 10:]]
    )
    np.testing.assert_array_equal(packed.tokens[1, :5], [3, 5, 6, 9, 8])
    np.testing.assert_array_equal(np.sum(packed.valid, axis=1), [10, 5])
    np.testing.assert_array_equal(packed.owner[0, :10], [-1, -1, 0, 0, -1, 1, -1, 2, 2, 2])
    np.testing.assert_array_equal(packed.owner[1, :6], [-1, 0, 0, -1, 2, -1])
    assert packed.tokens.shape == (2, 3 + 3 * 3 + 2)


def scores_and_gradients(function, params):
    """The scores of responses that are present, and the gradient of the sum of their sines."""

    def total(params):
        scores = jnp.where(PRESENT[..., None], function(params), 0.0)
        return jnp.sum(jnp.sin(scores)), scores

    (_, scores), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return scores, gradients


def test_independent_scores_and_gradients_are_those_of_single_rows(params):
    reader = MultiResponse(MODEL, SEPARATOR)
    together = scores_and_gradients(lambda params: reader.independent(params, *LISTS), params)
    alone = scores_and_gradients(lambda params: single(params, *LISTS), params)
    chex.assert_trees_all_close(together, alone, atol=3e-5)
    assert np.ptp(np.asarray(alone[0])[PRESENT]) > 0.1


def test_independent_scores_with_scanned_layers():
    config = dataclasses.replace(CONFIG, scan=True, spans=("global",))
    model = RewardModel(config, outputs=2, spread=0.5)
    params = jax.jit(model.init)(jax.random.key(0))
    together = jax.jit(MultiResponse(model, SEPARATOR).independent)(params, *LISTS)
    alone = single(params, *LISTS, model=model)
    np.testing.assert_allclose(together[PRESENT], alone[PRESENT], atol=1e-5)


def test_joint_scores_see_earlier_responses_and_not_later_ones(params):
    joint = jax.jit(MultiResponse(MODEL, SEPARATOR).joint)
    scores = joint(params, *LISTS)
    alone = single(params, *LISTS)
    np.testing.assert_allclose(scores[:, 0], alone[:, 0], atol=1e-5)
    assert np.min(np.abs(scores[0, 1:] - alone[0, 1:])) > 1e-4
    changed = RESPONSES.at[0, 1, 0].set(8)
    after = joint(params, PROMPT, PROMPT_VALID, changed, VALID)
    np.testing.assert_allclose(after[0, 0], scores[0, 0], atol=1e-6)
    assert np.min(np.abs(after[0, 1:] - scores[0, 1:])) > 1e-4


def test_a_row_of_one_is_a_single_row_and_means_are_over_its_own_tokens(params):
    first = PROMPT, PROMPT_VALID, RESPONSES[:, :1], VALID[:, :1]
    for mode in ("joint", "independent"):
        scores = jax.jit(getattr(MultiResponse(MODEL, SEPARATOR), mode))(params, *first)
        np.testing.assert_allclose(scores, single(params, *first), atol=1e-5)
    states = jnp.arange(8.0).reshape(1, 4, 2)
    own = jnp.array([[False, True, True, False]])
    np.testing.assert_allclose(mean_state(states, own), [[3.0, 4.0]])
    np.testing.assert_allclose(mean_state(states, jnp.zeros_like(own)), [[0.0, 0.0]])


def test_the_average_over_all_orders_does_not_depend_on_the_order():
    orders = jnp.array(list(itertools.permutations(range(3))))[:, None].repeat(2, axis=1)

    def place(responses, valid):
        return responses[:, :, 0] * jnp.array([1.0, 10.0, 100.0])

    one = reorder(RESPONSES, orders[4])
    np.testing.assert_array_equal(one[0, :, 0], RESPONSES[0, orders[4, 0], 0])
    found = average_over_orders(place, RESPONSES, VALID, orders)
    np.testing.assert_allclose(found, RESPONSES[:, :, 0] * 37.0, rtol=1e-6)
    last = orders[-1:]
    reverse = average_over_orders(place, RESPONSES, VALID, last)
    np.testing.assert_allclose(reverse, RESPONSES[:, :, 0] * jnp.array([100.0, 10.0, 1.0]))
