"""Judges of pairs: what they can and cannot depend on, their lists and metrics, policies in a known game."""

import jax
import jax.numpy as jnp
import numpy as np

from rewardjax import losses
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.pair_judges import (
    COLUMNS,
    comparing,
    general_judge,
    paired_judge,
    scalar_judge,
)
from rewardjax.recipes.styled_lists import (
    judge_metrics,
    labelled_pairs,
    random_lists,
    styled_lists,
    win_rates,
)
from rewardjax.recipes.table_policy import TableConfig, table_policies
from rewardjax.tasks.cyclic_styles import CyclicStyles

WORLD = CyclicStyles(turning=0.5)
MODEL = TransformerConfig(
    WORLD.vocab_size, 1, width=16, heads=2, kv_heads=2, head_dim=8, mlp_width=16
)
LISTS = random_lists(WORLD, jax.random.key(0), 6, 3)
ARGUMENTS = tuple(LISTS[name] for name in COLUMNS)


def logits(judge, arguments=ARGUMENTS):
    params = jax.jit(judge.model.init)(jax.random.key(1))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(2), params["head"]["kernel"].shape)
    return params, np.asarray(jax.jit(judge.logits)(params, *arguments))


def test_gpm_is_antisymmetric_and_pairs_are_not():
    for judge in (general_judge(MODEL, blocks=2, gated=True), scalar_judge(MODEL)):
        found = logits(judge)[1]
        np.testing.assert_allclose(found, -found.swapaxes(1, 2), atol=1e-6)
        assert np.abs(found).max() > 0.1
        assert judge.passes(16) == 16
    judge = paired_judge(MODEL, WORLD.sep)
    found = logits(judge)[1]
    np.testing.assert_array_equal(found[:, range(3), range(3)], 0.0)
    assert np.abs(found + found.swapaxes(1, 2)).max() > 0.01
    assert judge.passes(16) == 240


def test_an_embedding_apart_depends_on_the_prompt_by_its_gates_only():
    prompt, *rest = ARGUMENTS
    turned = jnp.where(prompt == WORLD.clockwise, WORLD.counterclockwise, WORLD.clockwise)
    turned = prompt.at[:, 1].set(turned[:, 1])
    for gated in (False, True):
        judge = general_judge(MODEL, blocks=2, gated=gated, apart=True)
        here, there = (logits(judge, (x, *rest))[1] for x in (prompt, turned))
        assert np.allclose(here, there, atol=1e-5) != gated


def test_one_block_with_a_constant_coordinate_is_bradley_terry():
    """With embeddings (r, 1) GPM's table is that of the differences of r."""
    found = logits(scalar_judge(MODEL))[1]
    rewards = found[:, :, :1] + 0.3
    embeddings = jnp.concatenate([rewards, jnp.ones_like(rewards)], axis=2)
    np.testing.assert_allclose(losses.preference_table(embeddings), found, atol=1e-5)


def test_the_loss_asks_in_both_orders():
    judge = paired_judge(MODEL, WORLD.sep)
    pairs = tuple(x[:, :2] if x.ndim == 3 else x for x in ARGUMENTS)
    params, table = logits(judge, pairs)
    value = comparing(judge)(params, dict(zip(COLUMNS, pairs))).terms["preference"].value
    expected = np.logaddexp(0, -table[:, 0, 1]).mean() + np.logaddexp(0, table[:, 1, 0]).mean()
    np.testing.assert_allclose(value, expected / 2, rtol=1e-5)


def test_annotators_prefer_the_style_that_beats():
    style = jnp.tile(jnp.array([0, 1]), (500, 1))
    lists = styled_lists(CyclicStyles(quality_effect=0.0), jax.random.key(3), style)
    np.testing.assert_array_equal(lists["ahead"][:, 0, 1], 1.0)
    pairs = labelled_pairs(CyclicStyles(), jax.random.key(4), 2000, 1e-6)
    tokens = np.asarray(pairs["responses"])
    own = [  # the style of which a response has three words
        [np.bincount((row[row >= 7] - 7) // 3, minlength=5).argmax() for row in side]
        for side in tokens.swapaxes(0, 1)
    ]
    ahead = (np.array(own[1]) - np.array(own[0])) % 5
    assert set(ahead) == {0, 1, 2}
    rates = win_rates(CyclicStyles(), 0.5)
    np.testing.assert_allclose(rates[0], 1 / (1 + np.exp([0, -2, -2, 2, 2])), rtol=1e-5)


def test_metrics_by_hand():
    style = jnp.array([[0, 1, 0]])
    ahead = jnp.array([[[0.0, 1, 0.5], [-1, 0, -1], [-0.5, 1, 0]]])
    found = judge_metrics(jnp.array([[[0.0, 2, -1], [-2, 0, 3], [1, -1, 0]]]), style, ahead)
    assert float(found["cyclic_accuracy"]) == 0.5  # of the pairs (0, 1) and (1, 2) the first
    assert float(found["quality_accuracy"]) == 0.0
    sigmoid = 1 / (1 + np.exp(-np.array([3.0, -1.0])))
    np.testing.assert_allclose(found["asymmetry"], abs(sigmoid.sum() - 1) / 3, rtol=1e-5)


def test_a_table_goes_to_the_response_that_beats_the_others():
    """GPO's regression takes about a step of multiplicative weights a round."""
    scores = jnp.array([[0.0, 1.0, 1.0], [-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    config = TableConfig(rounds=8, learning_rate=0.1)

    def loss(log_ratio, among):
        return losses.gpo(log_ratio, jnp.mean(among, axis=2), beta=1.0)

    policies = np.asarray(table_policies(config, loss, scores, jax.random.key(0)))
    np.testing.assert_allclose(policies.sum(axis=1), 1.0, rtol=1e-5)
    assert (np.diff(policies[:, 0]) > 0).all()
    assert policies[-1, 0] > 0.95
