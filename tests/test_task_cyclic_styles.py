"""The world of cyclic styles: who beats whom, and what responses are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.tasks.cyclic_styles import SPECIAL, CyclicStyles

WORLD = CyclicStyles(turning=0.5)


def test_each_style_beats_the_next_half_of_the_circle():
    styles = jnp.arange(5)
    beats = np.asarray(WORLD.cycle(styles[:, None], styles))
    np.testing.assert_array_equal(beats[0], [0, 1, 1, -1, -1])
    np.testing.assert_array_equal(beats, -beats.T)
    np.testing.assert_array_equal(beats.sum(axis=1), 0)


def test_advantage_by_hand():
    style, quality = jnp.array([[0, 1, 0]]), jnp.array([[0, 3, 2]])
    found = WORLD.advantage(style, quality, jnp.array([1]))[0]
    np.testing.assert_allclose(found[0], [0.0, 1 - 0.6, -0.4], rtol=1e-6)
    np.testing.assert_allclose(found, -found.T, rtol=1e-6)
    turned = WORLD.advantage(style, quality, jnp.array([-1]))[0]
    np.testing.assert_allclose(turned[0], [0.0, -1 - 0.6, -0.4], rtol=1e-6)


def test_a_response_has_its_styles_words_a_decoy_and_good_words():
    style = jnp.arange(200).reshape(40, 5) % 5
    tokens, quality = map(np.asarray, WORLD.responses(jax.random.key(0), style))
    family = (tokens - len(SPECIAL)) // WORLD.words
    styled = tokens >= len(SPECIAL)
    np.testing.assert_array_equal(np.sum(styled, axis=-1), 4)
    np.testing.assert_array_equal(
        np.sum(styled & (family == np.asarray(style)[..., None]), axis=-1), 3
    )
    np.testing.assert_array_equal(np.sum(tokens == WORLD.good, axis=-1), quality)
    assert set(quality.ravel()) == {0, 1, 2, 3}
    assert len(set(map(tuple, (tokens == WORLD.good).reshape(200, 8)))) > 20  # places vary


def test_prompts_say_the_direction():
    prompts = WORLD.prompts(jax.random.key(1), 50)
    words = [WORLD.decode(row).split()[1] for row in prompts.tokens]
    np.testing.assert_array_equal(
        np.array(words) == "clockwise", np.asarray(prompts.info["direction"]) == 1
    )
    assert len(set(words)) == 2
    assert CyclicStyles().prompts(jax.random.key(1), 50).info["direction"].min() == 1


def test_fields_out_of_range_are_named():
    for settings, message in [
        ({"styles": 4}, "styles: expected an odd number"),
        ({"decoys": 3}, "decoys: expected 0 to 2"),
        ({"response_length": 6}, "response_length: expected at least 7"),
        ({"turning": 1.5}, "turning: expected a share of 0 to 1"),
        ({"quality_effect": 0.5}, "worth less than a style"),
    ]:
        with pytest.raises(ValueError, match=message):
            CyclicStyles(**settings)
    with pytest.raises(ValueError, match="expected 0 to 21, found 22"):
        WORLD.decode([22])
