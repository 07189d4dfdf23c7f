"""Lexicographic comparison: by hand, and as a relation."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rewardjax.rewards.lexicographic import lexicographic_compare, lexicographic_margins

FEW = settings(max_examples=25, deadline=None)
SIGNS = (1, -1)
MARGINS = jnp.array([0.0, 0.5])
factors = arrays(np.float32, (6, 2), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]))


@pytest.mark.parametrize(
    ("z_i", "z_j", "label", "level"),
    [
        ((1.0, 9.0), (0.0, 0.0), 1, 0),  # success decides, whatever it cost
        ((0.0, 0.0), (1.0, 9.0), -1, 0),
        ((1.0, 2.0), (1.0, 3.0), 1, 1),  # equal success: the cheaper one
        ((1.0, 3.0), (1.0, 2.0), -1, 1),
        ((1.0, 2.0), (1.0, 2.5), 0, 2),  # a difference of exactly the margin is none
        ((1.0, 2.0), (1.0, 2.0), 0, 2),
        ((np.nan, 1.0), (0.0, 2.0), 1, 1),  # NaN decides nothing
        ((np.inf, 1.0), (0.0, 0.0), 1, 0),
    ],
)
def test_by_hand(z_i, z_j, label, level):
    found = lexicographic_compare(jnp.array(z_i), jnp.array(z_j), SIGNS, MARGINS)
    assert tuple(map(int, found)) == (label, level)


def compare_one(z_i, z_j):
    """The definition, factor by factor."""
    for level, (sign, margin) in enumerate(zip(SIGNS, np.asarray(MARGINS))):
        if sign * z_i[level] > sign * z_j[level] + margin:
            return 1, level
        if sign * z_j[level] > sign * z_i[level] + margin:
            return -1, level
    return 0, len(SIGNS)


@FEW
@given(factors, factors)
def test_rows_are_compared_by_the_definition_and_the_other_way_round_reversed(z_i, z_j):
    label, level = lexicographic_compare(jnp.array(z_i), jnp.array(z_j), SIGNS, MARGINS)
    expected = [compare_one(*rows) for rows in zip(z_i, z_j)]
    np.testing.assert_array_equal(np.stack([label, level], axis=1), expected)
    reverse, same_level = lexicographic_compare(jnp.array(z_j), jnp.array(z_i), SIGNS, MARGINS)
    np.testing.assert_array_equal(reverse, -label)
    np.testing.assert_array_equal(same_level, level)


def test_margins_make_the_relation_intransitive():
    costs = jnp.array([[0.0, 0.0], [0.0, 0.4], [0.0, 0.8]])
    labels = [
        int(lexicographic_compare(costs[i], costs[j], SIGNS, MARGINS)[0])
        for i, j in [(0, 1), (1, 2), (0, 2)]
    ]
    assert labels == [0, 0, 1]


@FEW
@given(factors, st.sampled_from([2.0**-7, 1.0, 2.0**7]))
def test_margins_in_deviations_forget_the_unit(z, unit):
    scale = jnp.array([1.0, unit])
    z = jnp.array(z)

    def compare(z):
        margins = lexicographic_margins(jnp.std(z, axis=0), (0.5, 0.5))
        return lexicographic_compare(z[:-1], z[1:], SIGNS, margins)

    for found, expected in zip(compare(z * scale), compare(z)):
        np.testing.assert_array_equal(found, expected)


def test_margins_by_hand():
    margins = lexicographic_margins(jnp.array([2.0, 0.0]), (0.0, 3.0), floor=0.1)
    np.testing.assert_allclose(margins, [0.0, 0.3], rtol=1e-6)


def test_what_does_not_fit_is_named():
    z = jnp.zeros(2)
    with pytest.raises(ValueError, match=r"expected 2, one a factor, found 1 and 2"):
        lexicographic_compare(z, z, (1,), MARGINS)
    with pytest.raises(ValueError, match=r"signs: expected 1 or -1 each, found \(1, 0\)"):
        lexicographic_compare(z, z, (1, 0), MARGINS)
    with pytest.raises(ValueError, match=r"multiples: expected 2 of at least 0, found \(1, -1\)"):
        lexicographic_margins(jnp.ones(2), (1, -1))
