"""Rewards for pointing at things: predicted boxes against gold ones, and against their Gaussians.

A box is `x1, y1, x2, y2` in pixels. GUI-G2 (arXiv:2507.15846) takes it for a Gaussian around its
centre whose deviations are `alpha` times its own width and height. Every function gives 0 for an
inverted box (x2 < x1 or y2 < y1), whose squared deviations would hide what is wrong with it, and so
must its caller where a response holds no box at all.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Boxes = Float[Array, "batch 4"]

GUARD = 1e-8  # added to variances (pixels squared), so that a box without extent divides by no 0


def well_formed(boxes: Boxes) -> Bool[Array, "batch"]:
    """Whether a box's second corner is not before its first."""
    return jnp.all(boxes[:, 2:] >= boxes[:, :2], axis=1)


def centres(boxes: Boxes) -> Float[Array, "batch 2"]:
    """The boxes' centres, x and y."""
    return 0.5 * (boxes[:, :2] + boxes[:, 2:])


def distance(predicted: Boxes, gold: Boxes) -> Float[Array, "batch"]:
    """Between the centres, in pixels (a measure, not a reward: the order of corners is ignored)."""
    return jnp.sqrt(jnp.sum((centres(predicted) - centres(gold)) ** 2, axis=1))


def distance_reward(predicted: Boxes, gold: Boxes, *, reach: float) -> Float[Array, "batch"]:
    """`1 - distance / reach`, at least 0: linear, whatever the target's size."""
    near = jnp.maximum(0.0, 1.0 - distance(predicted, gold) / reach)
    return jnp.where(well_formed(predicted), near, 0.0)


def point_in_box(predicted: Boxes, gold: Boxes) -> Float[Array, "batch"]:
    """1 where the predicted centre lies in the gold box or on its edge."""
    point = centres(predicted)
    inside = jnp.all((point >= gold[:, :2]) & (point <= gold[:, 2:]), axis=1)
    return (inside & well_formed(predicted)).astype(jnp.float32)


def iou(predicted: Boxes, gold: Boxes) -> Float[Array, "batch"]:
    """Intersection over union, in [0, 1]; 0 where both have no area."""
    low = jnp.maximum(predicted[:, :2], gold[:, :2])
    high = jnp.minimum(predicted[:, 2:], gold[:, 2:])
    common = jnp.prod(jnp.maximum(high - low, 0.0), axis=1)
    areas = [jnp.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (predicted, gold)]
    union = areas[0] + areas[1] - common
    share = common / jnp.where(union > 0, union, 1.0)
    return jnp.where(well_formed(predicted), share, 0.0)


def variances(
    boxes: Boxes, *, alpha: float = 0.5, sigma: float | None = None
) -> Float[Array, "batch 2"]:
    """Of a box's Gaussian in x and y: `(alpha * extent)^2`, or `sigma^2` for boxes of all sizes."""
    extents = boxes[:, 2:] - boxes[:, :2]
    return (alpha * extents if sigma is None else jnp.full_like(extents, sigma)) ** 2


def gaussian_point(
    predicted: Boxes, gold: Boxes, *, alpha: float = 0.5, sigma: float | None = None
) -> Float[Array, "batch"]:
    """The gold box's Gaussian at the predicted centre, 1 at its own (the paper's R_point).

    Args:
      predicted: boxes that may be inverted.
      gold: boxes of positive extent.
      alpha: deviations in units of the gold box's width and height.
      sigma: one deviation in pixels for all boxes, instead.
    """
    apart = (centres(predicted) - centres(gold)) ** 2
    spread = variances(gold, alpha=alpha, sigma=sigma) + GUARD
    near = jnp.exp(-0.5 * jnp.sum(apart / spread, axis=1))
    return jnp.where(well_formed(predicted), near, 0.0)


def gaussian_coverage(
    predicted: Boxes, gold: Boxes, *, alpha: float = 0.5, sigma: float | None = None
) -> Float[Array, "batch"]:
    """The Bhattacharyya coefficient of both boxes' Gaussians (the paper's R_coverage).

        exp(-1/8 d^T S^-1 d - 1/2 ln(det S / sqrt(det S_p det S_g))),   S = (S_p + S_g) / 2

    Symmetric; 1 for equal boxes only; 0 with a box without extent. Arguments as for
    `gaussian_point`; with a `sigma` the boxes' sizes do not matter at all.
    """
    apart = (centres(predicted) - centres(gold)) ** 2
    own, other = (variances(boxes, alpha=alpha, sigma=sigma) for boxes in (predicted, gold))
    mean = 0.5 * (own + other) + GUARD
    # exp of half a log of a ratio of products, as roots of each axis' own ratio: no log of 0.
    alike = jnp.prod(jnp.sqrt(jnp.sqrt(own) * jnp.sqrt(other) / mean), axis=1)
    near = jnp.exp(-0.125 * jnp.sum(apart / mean, axis=1))
    return jnp.where(well_formed(predicted), jnp.minimum(alike * near, 1.0), 0.0)
