"""Transforms of a reward before it is optimised.

All but `potential_shaping` map one outcome a row, `[batch]`, to another, in float32. `references`
`[batch, m]` are the scores that the same reward model gives to m responses of a reference policy to
the row's prompt; m is at least 1. Statistics are one for all rows, or one a row.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

Scalar = float | Float[Array, ""]
Statistic = Scalar | Float[Array, "batch"]


def centred(
    reward: Float[Array, "batch"], references: Float[Array, "batch m"]
) -> Float[Array, "batch"]:
    """The reward less the references' mean."""
    return _float32(reward) - jnp.mean(_float32(references), axis=-1)


def standardised(
    reward: Float[Array, "batch"], mean: Statistic, std: Statistic
) -> Float[Array, "batch"]:
    """`(r - mean) / std`; only centred where `std` is 0."""
    std = jnp.asarray(std, jnp.float32)
    return (_float32(reward) - mean) / jnp.where(std > 0, std, 1.0)


def min_max(
    reward: Float[Array, "batch"], low: Statistic, high: Statistic
) -> Float[Array, "batch"]:
    """`(r - low) / (high - low)`, not clipped; 0 where `high` is not above `low`."""
    low, high = jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32)
    wide = high > low
    shifted = _float32(reward) - jnp.where(wide, low, 0.0)
    return jnp.where(wide, shifted / jnp.where(wide, high - low, 1.0), 0.0)


def clipped_to(
    reward: Float[Array, "batch"], mean: Statistic, std: Statistic
) -> Float[Array, "batch"]:
    """The reward held within one `std` of `mean`."""
    return jnp.clip(_float32(reward), mean - std, mean + std)


def ceiling(reward: Float[Array, "batch"], c: Scalar) -> Float[Array, "batch"]:
    """`min(r, c)`."""
    return jnp.minimum(_float32(reward), c)


def sigmoid(reward: Float[Array, "batch"]) -> Float[Array, "batch"]:
    """The logistic function of the reward, in (0, 1)."""
    return jax.nn.sigmoid(_float32(reward))


def sigmoid_centred(
    reward: Float[Array, "batch"],
    references: Float[Array, "batch m"],
    *,
    k: Scalar = 1.0,
    offset: Scalar = 0.0,
) -> Float[Array, "batch"]:
    """The mean over references of `sigmoid(k (r - offset - reference))`, in (0, 1).

    Preference As Reward (arXiv:2502.18770): with the defaults, the probability that the row's
    response beats a reference's under Bradley-Terry. `k` is the slope in 1/reward; `offset` moves
    the steepest point up (3 in the paper's SGFC).
    """
    differences = _float32(reward)[:, None] - offset - _float32(references)
    return jnp.mean(jax.nn.sigmoid(k * differences), axis=-1)


def normal_quantile(
    references: Float[Array, "batch m"], quantile: float = 0.85
) -> Float[Array, "batch"]:
    """The quantile of a normal distribution with the references' mean and (population) deviation.

    1e-5 is added to the deviation.

    Raises:
      ValueError: `quantile` is not inside (0, 1).
    """
    _check_quantile(quantile)
    references = _float32(references)
    std = jnp.std(references, axis=-1) + 1e-5
    return jnp.mean(references, axis=-1) + std * jax.scipy.stats.norm.ppf(quantile)


def sample_quantile(
    references: Float[Array, "batch m"], quantile: float = 0.85
) -> Float[Array, "batch"]:
    """The references' own quantile, interpolated between two of them; it takes tens to be steady.

    Raises:
      ValueError: `quantile` is not inside (0, 1).
    """
    _check_quantile(quantile)
    return jnp.quantile(_float32(references), quantile, axis=-1)


def log_sigmoid_centred(
    reward: Float[Array, "batch"],
    references: Float[Array, "batch m"],
    quantile: float = 0.85,
    *,
    estimate: Callable[..., Float[Array, "batch"]] = normal_quantile,
) -> Float[Array, "batch"]:
    """`log sigmoid(r - q)`, q a quantile of the references; below 0 (LSC, arXiv:2402.00742).

    Under Bradley-Terry the log-probability that the response beats one of that quality.

    Args:
      reward: of each row, on the scale on which the reward model was fitted.
      references: what q is estimated from.
      quantile: inside (0, 1).
      estimate: `(references, quantile) -> q`, `normal_quantile` or `sample_quantile`.

    Raises:
      ValueError: `quantile` is not inside (0, 1).
    """
    return jax.nn.log_sigmoid(_float32(reward) - estimate(references, quantile))


def log_conjunction(margins: Float[Array, "batch k"]) -> Float[Array, "batch"]:
    """`sum_k log sigmoid(m_k)`: the log-probability that a response is good in all k ways.

    The ways are independent, and `sigmoid(m_k)` is how probably it is good in one, m_k being its reward
    less that of a response which is just good enough (arXiv:2402.00742).
    """
    return jnp.sum(jax.nn.log_sigmoid(_float32(margins)), axis=-1)


def log_disjunction(margins: Float[Array, "batch k"]) -> Float[Array, "batch"]:
    """`log(1 - prod_k (1 - sigmoid(m_k)))`: that it is good in any of k ways; as `log_conjunction`."""
    margins = _float32(margins)
    bad = jax.nn.log_sigmoid(-margins)
    # Good in way k and in none before it: these exclude each other, so that nothing is subtracted.
    first = jax.nn.log_sigmoid(margins) + jnp.cumsum(bad, axis=-1) - bad
    return jax.nn.logsumexp(first, axis=-1)


def length_guard(
    reward: Float[Array, "batch"], length: Num[Array, "batch"], *, limit: Scalar, rate: Scalar
) -> Float[Array, "batch"]:
    """`r - rate max(0, length - limit)`: `rate` reward off for each step beyond `limit` steps."""
    return _float32(reward) - rate * jnp.maximum(0.0, length - limit)


def potential_shaping(
    rewards: Float[Array, "batch time"],
    potentials: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    discount: Scalar = 1.0,
) -> Float[Array, "batch time"]:
    """`r_t + discount P_{t+1} - P_t`, which keeps the best policies the best; 0 off the mask.

    Ng, Harada and Russell (1999). The potential after a row's last acted step is 0.

    Args:
      rewards: the reward of each step.
      potentials: P, of the state in which the action at each step is taken; a function of it alone.
      mask: acted steps; t + 1 is the next of them.
      discount: that of the returns being maximised, per acted step.
    """

    def backward(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        potential, acted = step
        return jnp.where(acted, potential, later), later

    potentials = _float32(potentials)
    nothing = jnp.zeros(mask.shape[:1], jnp.float32)
    _, following = jax.lax.scan(backward, nothing, (potentials.T, mask.T), reverse=True)
    return jnp.where(mask, _float32(rewards) + discount * following.T - potentials, 0.0)


def _check_quantile(quantile: float) -> None:
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile: expected a number inside (0, 1), found {quantile}")


def _float32(values: Float[Array, "..."]) -> Float[Array, "..."]:
    return values.astype(jnp.float32)
