"""Gradients taken elsewhere than at the parameters."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float


def ascended(
    objective: Callable[[Any], Float[Array, ""]], params: Any, rate: float | Float[Array, ""]
) -> Any:
    """Parameters one step of gradient ascent ahead, whose gradient is that of `params` (first order).

    A loss of them, derived by `params`, has the gradient that it has there: MetaRM's and first-order
    MAML's (arXiv:1703.03400, section 5.2) update. With `rate` 0 it is the ordinary one.
    """
    gradient = jax.grad(objective)(jax.lax.stop_gradient(params))
    return jax.tree.map(lambda p, g: p + jax.lax.stop_gradient(rate * g), params, gradient)
