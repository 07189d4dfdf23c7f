"""Arithmetic on parameters: extrapolation and averaging of models of one shape."""

import functools
import operator
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
from jaxtyping import Array, Float

Params = TypeVar("Params", bound=Any)


def expo_extrapolate(start: Params, end: Params, a: float | Float[Array, ""]) -> Params:
    """`start + (1 + a) (end - start)`: on along the way that training went (ExPO, arXiv:2404.16792).

    Args:
      start: the parameters before training, a pytree of arrays.
      end: those after it, of the same structure and shapes.
      a: how far beyond `end`, in units of the way; 0 is `end`, -1 is `start`.

    Raises:
      ValueError: the two pytrees have different structures.
    """
    return jax.tree.map(lambda x, y: x + (1 + a) * (y - x), start, end)


def average(params: Sequence[Params]) -> Params:
    """The mean of several parameters, leaf by leaf (model soups, arXiv:2203.05482).

    Raises:
      ValueError: there are none, or their structures differ.
    """
    if not params:
        raise ValueError("params: expected at least one pytree to average, found none")
    return jax.tree.map(
        lambda *leaves: functools.reduce(operator.add, leaves) / len(leaves), *params
    )
