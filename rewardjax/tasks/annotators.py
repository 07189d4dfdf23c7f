"""Annotators who see gold utilities through noise: comparisons, strengths and ratings.

Pure functions of keys and arrays of any one shape; all jit. For annotators who want different
things, compute each one's utilities first (`PreferenceWorld.annotators`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

SMALLEST_TEMPERATURE = 1e-12


def preference_probability(
    utility_a: Float[Array, "*shape"],
    utility_b: Float[Array, "*shape"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    flip_rate: float | Float[Array, ""] | Float[Array, "*shape"] = 0.0,
) -> Float[Array, "*shape"]:
    """Probability that an annotator prefers a to b: Bradley-Terry, then uniform flips.

    p = (1 - flip_rate) s + flip_rate (1 - s), with s = sigmoid((u_a - u_b) / temperature).

    Args:
      utility_a: utility of the first response.
      utility_b: utility of the second response.
      temperature: in units of utility, 0 or more; 0 always sees the better one (a tie is 1/2).
      flip_rate: share of labels turned round whatever the utilities, 0 to 1/2; one for all or each.
    """
    gap = (utility_a - utility_b).astype(jnp.float32)
    seen = jax.nn.sigmoid(gap / jnp.maximum(temperature, SMALLEST_TEMPERATURE))
    return (1 - flip_rate) * seen + flip_rate * (1 - seen)


def compare(
    key: Key[Array, ""],
    utility_a: Float[Array, "*shape"],
    utility_b: Float[Array, "*shape"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    flip_rate: float | Float[Array, ""] | Float[Array, "*shape"] = 0.0,
) -> Bool[Array, "*shape"]:
    """Draw labels, true where a is preferred, with `preference_probability`."""
    probability = preference_probability(
        utility_a, utility_b, temperature=temperature, flip_rate=flip_rate
    )
    return jax.random.bernoulli(key, probability)


def vote(
    key: Key[Array, ""],
    utility: Float[Array, "groups size"],
    annotators: int,
    label: Callable[..., Bool[Array, "*shape"]],
) -> Float[Array, "groups size size"]:
    """How many annotators prefer the row's response of a group to the column's; 0 on the diagonal.

    Args:
      key: consumed.
      utility: of each response.
      annotators: how many compare every pair, each on their own.
      label: `(key, utility_a, utility_b) -> ` true where a is preferred (`compare`).
    """
    shape = (annotators, *utility.shape, utility.shape[1])
    sides = utility[:, :, None], utility[:, None, :]
    drawn = label(key, *(jnp.broadcast_to(side, shape) for side in sides))
    first = jnp.triu(jnp.sum(drawn, axis=0).astype(jnp.float32), 1)
    second = jnp.triu(annotators - first, 1)
    return first + jnp.swapaxes(second, -1, -2)


def magnitude(
    utility_a: Float[Array, "*shape"],
    utility_b: Float[Array, "*shape"],
    bins: tuple[float, ...] = (0.25, 0.5),
) -> Int[Array, "*shape"]:
    """How much better the better response is: 1 slightly, 2 better, 3 much better; 0 for a tie.

    `bins` are the rising gaps of utility above which the strength is 2, 3, ...
    (HelpSteer2-Preference, arXiv:2410.01257, section 2).
    """
    gap = jnp.abs(utility_a - utility_b)
    return jnp.sum(gap[..., None] > jnp.asarray((0.0, *bins)), axis=-1)


def compare_with_magnitude(
    key: Key[Array, ""],
    utility_a: Float[Array, "*shape"],
    utility_b: Float[Array, "*shape"],
    *,
    bins: tuple[float, ...] = (0.25, 0.5),
    flip_rates: tuple[float, ...] = (0.3, 0.1, 0.02),
) -> tuple[Bool[Array, "*shape"], Int[Array, "*shape"]]:
    """Draw forced choices with strengths: (true where a is preferred, the strength of `magnitude`).

    The true strength is reported; the direction is wrong with the strength's entry of `flip_rates`,
    so close pairs are labelled worse. A tie (strength 0) is a fair coin.

    Raises:
      ValueError: `flip_rates` does not have one entry more than `bins`.
    """
    if len(flip_rates) != len(bins) + 1:
        raise ValueError(f"flip_rates: expected {len(bins) + 1} entries, found {len(flip_rates)}")
    strength = magnitude(utility_a, utility_b, bins)
    flips = jax.random.bernoulli(key, jnp.asarray((0.5, *flip_rates))[strength])
    return (utility_a > utility_b) ^ flips, strength


def rate(
    key: Key[Array, ""],
    utility: Float[Array, "*shape"],
    *,
    low: int = 0,
    high: int = 4,
    noise: float | Float[Array, ""] = 0.5,
) -> Float[Array, "*shape"]:
    """Likert ratings: round(clip(utility + normal noise, low, high)), whole numbers as float32.

    `utility` is on the rating's own scale and `noise` is a standard deviation on it. Repeat the
    utilities along a leading axis for several annotators.

    Raises:
      ValueError: `low` is not below `high`.
    """
    if low >= high:
        raise ValueError(f"low: expected less than high = {high}, found {low}")
    seen = utility + noise * jax.random.normal(key, utility.shape)
    return jnp.round(jnp.clip(seen, low, high))


def rate_some(
    key: Key[Array, ""],
    score: Float[Array, "items objectives"],
    *,
    share: float,
    noise: float | Float[Array, ""] = 0.1,
) -> tuple[Float[Array, "items objectives"], Bool[Array, "items objectives"]]:
    """Ratings in [0, 1] of some objectives of each item: (ratings, where there is one).

    A rating is the score with normal noise, clipped; it is 0 where nobody rated.

    Args:
      key: consumed.
      score: on the ratings' scale.
      share: how often an objective of an item is rated, each independently.
      noise: standard deviation.
    """
    seen_key, noise_key = jax.random.split(key)
    rated = jax.random.bernoulli(seen_key, share, score.shape)
    ratings = jnp.clip(score + noise * jax.random.normal(noise_key, score.shape), 0.0, 1.0)
    return jnp.where(rated, ratings, 0.0), rated
