"""Which of several variants of an example to keep, by where they lie among one another."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

FLAT = 1e-4  # of the largest extent; below it points are on a line


def principal_plane(points: Float[Array, "*batch n width"]) -> Float[Array, "*batch n 2"]:
    """The points in the plane of their two largest principal components, centred on their mean."""
    centred = points - jnp.mean(points, axis=-2, keepdims=True)
    left, scale, _ = jnp.linalg.svd(centred, full_matrices=False)
    return left[..., :2] * scale[..., None, :2]


def hull_vertices(points: Float[Array, "*batch n 2"]) -> Bool[Array, "*batch n"]:
    """Which points are corners of their convex hull; all where they are on a line, or are two.

    A corner sees all other points within less than half a turn. Of points in one place all are, or none.
    """
    away = points[..., None, :, :] - points[..., :, None, :]  # from a point, to a point
    apart = jnp.sum(away**2, axis=-1)
    angle = jnp.arctan2(away[..., 1], away[..., 0])
    # What is in the same place is seen in the direction of the farthest point: it then says nothing.
    far = jnp.take_along_axis(angle, jnp.argmax(apart, axis=-1)[..., None], axis=-1)
    angle = jnp.sort(jnp.where(apart > 0, angle, far), axis=-1)
    first = angle[..., :1] + 2 * jnp.pi
    gap = jnp.diff(jnp.concatenate([angle, first], axis=-1), axis=-1)
    corner = jnp.max(gap, axis=-1) > jnp.pi + 1e-5
    extent = jnp.linalg.svd(points - jnp.mean(points, axis=-2, keepdims=True), compute_uv=False)
    flat = extent[..., 1] <= FLAT * extent[..., 0]
    return corner | flat[..., None]
