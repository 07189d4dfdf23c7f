"""Styled answers: contents by class, styles by association, gold that reads content alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.tasks.styled_answers import CAPITALS, ENDING, LONG, SPECIAL, StyledAnswers
from rewardjax.trajectory import respond

WORLD = StyledAnswers(topics=3, words=2, plain=2)


@pytest.fixture(scope="module")
def answers():
    keys = jax.random.split(jax.random.key(0), 4)
    prompts = WORLD.prompts(keys[0], 1000)
    good = jnp.arange(1000) % 2 == 0
    contents = WORLD.contents(keys[1], prompts.info["topic"], good)
    styles = WORLD.styles(keys[2], good)
    return prompts, good, contents, styles, WORLD.written(keys[3], contents, styles)


def test_gold_tells_the_classes_apart_whatever_the_style(answers):
    prompts, good, contents, styles, (tokens, valid) = answers
    traj = respond(prompts, tokens, valid)
    gold = np.asarray(WORLD.gold(traj.tokens, traj.mask, traj.info))
    np.testing.assert_array_equal(gold > 0, good)
    np.testing.assert_allclose(np.unique(np.abs(gold)), [1 / 3, 1], rtol=1e-6)
    other = respond(prompts, *WORLD.written(jax.random.key(9), contents, ~styles))
    np.testing.assert_array_equal(WORLD.gold(other.tokens, other.mask, other.info), gold)


def test_styles_go_with_the_class_and_can_be_read(answers):
    _, good, _, styles, (tokens, valid) = answers
    good, styles = np.asarray(good), np.asarray(styles)
    np.testing.assert_allclose((styles == good[:, None]).mean(axis=0), 0.95, atol=0.03)
    lengths = np.asarray(valid).sum(axis=1)
    assert lengths[~styles[:, LONG]].max() == 6
    assert lengths[styles[:, LONG]].min() == 8
    small = np.asarray(tokens)[:, :3] < len(SPECIAL) + WORLD.said
    np.testing.assert_array_equal(small, np.repeat(~styles[:, [CAPITALS]], 3, axis=1))
    last = np.asarray(tokens)[np.arange(1000), lengths - 2]
    np.testing.assert_array_equal(last - WORLD.ending, styles[:, ENDING])
    assert (np.asarray(tokens)[np.arange(1000), lengths - 1] == WORLD.eos).all()


def test_gold_by_hand():
    text = WORLD.vocabulary.index
    topic = jnp.array([0, 0, 0])
    rows = [("a1", "A2", "b1"), ("plain1", "<end1>", "<eos>"), ("c1", "C1", "plain2")]
    tokens = jnp.array([[text(word) for word in row] for row in rows])
    gold = WORLD.gold(tokens, jnp.ones_like(tokens, bool), {"topic": topic})
    np.testing.assert_allclose(gold, [1 / 3, 0, -1], rtol=1e-6)


def test_prompts_name_their_topic(answers):
    prompts = answers[0]
    named = (np.asarray(prompts.tokens)[:, 1:3] - len(SPECIAL)) // WORLD.words
    np.testing.assert_array_equal(
        named, np.repeat(np.asarray(prompts.info["topic"])[:, None], 2, 1)
    )
    assert WORLD.decode([1, 6, 7, 3]) == "<bos> a1 a2 <sep>"


@pytest.mark.parametrize(("field", "value"), [("topics", 1), ("association", 1.5)])
def test_a_world_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}.*found.*{value}"):
        StyledAnswers(**{field: value})
