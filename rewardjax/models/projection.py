"""The matrix product of every layer, with a backward pass laid out for speed."""

import jax
from jaxtyping import Array, Float


@jax.custom_vjp
def project(x: Float[Array, "*batch into"], weight: Float[Array, "into out"]) -> Array:
    """`x @ weight`, `[*batch, out]`.

    Autodiff's own gradient of the weight comes out transposed, and XLA's CPU backend then writes the
    transpose of every incoming gradient, which made a training step 1.7 times as long. Here both
    gradients are plain products. There is no forward-mode derivative.
    """
    return x @ weight


def _forward(x, weight):
    return x @ weight, (x, weight)


def _backward(saved, gradient):
    x, weight = saved
    rows = x.reshape(-1, x.shape[-1])
    columns = gradient.reshape(-1, gradient.shape[-1])
    return gradient @ weight.T, rows.T @ columns


project.defvjp(_forward, _backward)
