"""Worlds of small pictures: coloured shapes with their detector, and handwritten digits."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.tasks.digits import Digits, load_digits
from rewardjax.tasks.shapes import Shapes

WORLD = Shapes()


def test_every_rendered_picture_is_detected_exactly():
    found = WORLD.detect(jnp.asarray(WORLD.templates))
    shape, colour, quadrant = WORLD.split(np.arange(48))
    np.testing.assert_array_equal(found.shape, shape)
    np.testing.assert_array_equal(found.colour, colour)
    np.testing.assert_array_equal(found.quadrant, quadrant)
    np.testing.assert_array_equal(found.fit, np.ones(48))


def test_labels_in_words_and_pixels():
    # (shape 1 * 3 colours + colour 2) * 4 quadrants + quadrant 3
    assert WORLD.describe(23) == "blue disc, bottom right"
    picture = WORLD.templates[23]
    assert np.all(picture[:6] == 0)
    assert np.all(picture[:, :6] == 0)
    np.testing.assert_allclose(picture[8, 8], [0.2, 0.3, 1.0])
    assert np.all(picture[6, 6] == 0)  # a corner that a square would fill


def test_a_noisy_picture_fits_less_and_is_still_read():
    images, labels = WORLD.draw(jax.random.key(0), 20)
    noisy = images + 0.1 * jax.random.normal(jax.random.key(1), images.shape)
    found = WORLD.detect(noisy.at[0, 0, 0, 0].set(jnp.nan))
    np.testing.assert_array_equal(found.shape, WORLD.split(labels)[0])
    np.testing.assert_array_equal(found.colour, WORLD.split(labels)[1])
    assert np.all((found.fit > 0) & (found.fit < 1))


def test_black_fits_nothing():
    np.testing.assert_array_equal(WORLD.detect(jnp.zeros((1, 12, 12, 3))).fit, [0.0])


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"expected pictures of \(12, 12, 3\).*found \(8, 8, 3\)"):
        WORLD.detect(jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match="size: expected an even number from 10 on, found 7"):
        Shapes(size=7)


def corner(value):
    return jnp.full((8, 8), -1.0).at[0, 0].set(value)


FEW = Digits(jnp.stack([corner(1.0), corner(-1.0), corner(0.0)]), jnp.array([3, 5, 5]))


def test_posterior_by_hand():
    found = np.exp(np.asarray(FEW.log_posterior(corner(0.5)[None], bandwidth=0.5)[0]))
    kernels = np.exp(-0.5 * np.array([0.5, 1.5, 0.5]) ** 2 / 0.25)
    np.testing.assert_allclose(found[3], kernels[0] / kernels.sum(), rtol=1e-4)
    np.testing.assert_allclose(found[5], kernels[1:].sum() / kernels.sum(), rtol=1e-4)
    assert found[7] == 0


def test_nearest_by_hand():
    label, distance = FEW.nearest(jnp.stack([corner(0.8), corner(-0.4)]))
    np.testing.assert_array_equal(label, [3, 5])
    np.testing.assert_allclose(distance, [0.2 / 8, 0.4 / 8], rtol=1e-3)


def test_draws_follow_the_class_weights():
    often = jnp.log(jnp.full(10, 1e-9).at[3].set(0.25).at[5].set(0.75))
    x = FEW.draw(jax.random.key(0), 4000, often)
    share = [float(jnp.mean(x[:, 0, 0] == value)) for value in (1.0, -1.0, 0.0)]
    np.testing.assert_allclose(share, [0.25, 0.375, 0.375], atol=0.03)


def test_the_real_digits():
    pytest.importorskip("sklearn")
    train, test = load_digits()
    assert (len(train.images), len(test.images)) == (899, 898)
    assert float(jnp.min(train.images)) == -1.0
    assert float(jnp.max(train.images)) == 1.0
    assert float(jnp.mean(test.nearest(train.images)[0] == train.labels)) > 0.97
    named = jnp.argmax(train.log_posterior(test.images), axis=1)
    assert float(jnp.mean(named == test.labels)) > 0.97


def test_without_scikit_learn_the_error_says_how_to_get_it(monkeypatch):
    find = builtins.__import__

    def missing(name, *rest):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return find(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'rewardjax\[generation\]'"):
        load_digits()
