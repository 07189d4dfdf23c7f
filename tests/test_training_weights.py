"""Extrapolation and averaging of parameters."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardjax.training.weights import average, expo_extrapolate

START = {"w": np.array([1.0, 2.0], np.float32), "b": (np.float32(0.0),)}
END = {"w": np.array([2.0, 0.0], np.float32), "b": (np.float32(4.0),)}


def test_expo_by_hand():
    found = expo_extrapolate(START, END, 0.5)
    # 1 + 1.5 * 1, 2 + 1.5 * -2, 0 + 1.5 * 4
    np.testing.assert_allclose(found["w"], [2.5, -1.0])
    np.testing.assert_allclose(found["b"][0], 6.0)


@pytest.mark.parametrize(("a", "expected"), [(0.0, END), (-1.0, START)])
def test_expo_ends(a, expected):
    jax.tree.map(np.testing.assert_allclose, expo_extrapolate(START, END, a), expected)


def test_expo_takes_a_traced_coefficient():
    found = jax.vmap(lambda a: expo_extrapolate(START, END, a)["b"][0])(np.array([0.0, 1.0]))
    np.testing.assert_allclose(found, [4.0, 8.0])


def test_expo_refuses_other_structures():
    with pytest.raises(ValueError, match="pytree structure"):
        expo_extrapolate(START, {"w": END["w"]}, 0.5)


def test_average_by_hand():
    found = average([START, END, {"w": np.array([3.0, 4.0]), "b": (np.float32(-1.0),)}])
    np.testing.assert_allclose(found["w"], [2.0, 2.0])
    np.testing.assert_allclose(found["b"][0], 1.0)


def test_average_of_none():
    with pytest.raises(ValueError, match="found none"):
        average([])


@given(st.floats(-2, 2))
def test_extrapolating_half_way_back_is_the_average(a):
    """Extrapolations by a and -2 - a lie on opposite sides of the start, equally far."""
    both = [expo_extrapolate(START, END, a), expo_extrapolate(START, END, -2.0 - a)]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), average(both), START)
