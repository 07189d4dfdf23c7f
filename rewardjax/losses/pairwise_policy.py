"""Policy gradients from two responses to one prompt, and the difference of their rewards alone.

    loss = pairwise_policy_loss(surrogate=jointly_clipped(0.2))

Whatever is added to both rewards of a pair changes nothing, so that rewards which say the same of every
comparison give the same updates. A pair is two adjacent rows (`PolicyGradient(adjacent=2)` keeps them so).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rewardjax.losses.policy import Loss, PolicyLoss, drift_metrics, token_ratio
from rewardjax.losses.preference import log_ratio
from rewardjax.losses.scores import Scores
from rewardjax.statistics import Mean, masked_mean, to_groups
from rewardjax.trajectory import Trajectory

# Of the rows' log-ratios and their rewards less the partner's, what is minimised, and where it is cut off.
PairSurrogate = Callable[
    [Float[Array, "pairs 2"], Float[Array, "pairs 2"]],
    tuple[Float[Array, "pairs"], Float[Array, "pairs"]],
]


def separately_clipped(clip: float = 0.2) -> PairSurrogate:
    """P3O-V1 (arXiv:2310.00212): each response's ratio is clipped by itself.

    `-sum_i min(c_i w_i, c_i clip(w_i, 1 - clip, 1 + clip)) / 2` with `c_i = sg(d_i w_j)`: w the ratios of
    the two responses, j the other one of i, d_i = r_i - r_j, sg the stop of the gradient.

    Raises:
      ValueError: `clip` is negative.
    """
    _check_clip(clip)

    def surrogate(
        log_ratios: Float[Array, "pairs 2"], differences: Float[Array, "pairs 2"]
    ) -> tuple[Float[Array, "pairs"], Float[Array, "pairs"]]:
        ratios = jnp.exp(log_ratios)
        weights = differences * jax.lax.stop_gradient(ratios[:, ::-1])
        free, bounded = weights * ratios, weights * jnp.clip(ratios, 1.0 - clip, 1.0 + clip)
        return -0.5 * jnp.sum(jnp.minimum(free, bounded), axis=1), jnp.mean(bounded < free, axis=1)

    return surrogate


def jointly_clipped(clip: float = 0.2) -> PairSurrogate:
    """P3O-V2 (arXiv:2310.00212): what the responses' log-ratios differ by is clipped.

    `-min(c D, c clip(D, -clip, clip)) / 2` with `D = log w_1 - log w_2` and `c = sg(d_1 w_1 w_2)`; names
    as in `separately_clipped`.

    Raises:
      ValueError: `clip` is negative.
    """
    _check_clip(clip)

    def surrogate(
        log_ratios: Float[Array, "pairs 2"], differences: Float[Array, "pairs 2"]
    ) -> tuple[Float[Array, "pairs"], Float[Array, "pairs"]]:
        weight = differences[:, 0] * jnp.exp(jax.lax.stop_gradient(jnp.sum(log_ratios, axis=1)))
        apart = log_ratios[:, 0] - log_ratios[:, 1]
        free, bounded = weight * apart, weight * jnp.clip(apart, -clip, clip)
        return -0.5 * jnp.minimum(free, bounded), (bounded < free).astype(jnp.float32)

    return surrogate


def pairwise_policy_loss(*, surrogate: PairSurrogate, limit: float = 5.0) -> PolicyLoss:
    """The mean of a surrogate over pairs of adjacent rows.

    Ratios are those of whole responses, the product over a row's tokens. At the policy that sampled, the
    gradient is that of `reinforce_loss` with `leave_one_out` credit and rows' tokens summed.

    Terms: `policy`. Metrics: those of `drift_metrics` on the token ratios, and `clip_fraction`, the share of
    responses (of pairs with `jointly_clipped`) whose gradient the surrogate cuts off.

    Args:
      surrogate: `separately_clipped(...)` or `jointly_clipped(...)`.
      limit: a row's log-ratio is cut to +-this, in nats: products over long responses explode.

    Returns:
      `loss(scores, traj, advantages) -> Loss`. The advantages are those of `credit.leave_one_out` with
      groups of two: at each acted step the row's reward less its partner's. A pair in which one row acted
      nowhere does not count. It raises ValueError for an odd number of rows.
    """

    def loss(scores: Scores, traj: Trajectory, advantages: Float[Array, "batch time"]) -> Loss:
        ratios = log_ratio(scores.logprobs, traj.logprobs, traj.mask)
        ratios = to_groups(jnp.clip(ratios, -limit, limit), 2)
        differences = masked_mean(jax.lax.stop_gradient(advantages), traj.mask, axis=-1)
        values, cut = surrogate(ratios, to_groups(differences, 2))
        counted = jnp.all(to_groups(jnp.any(traj.mask, axis=-1), 2), axis=1)
        by_token = token_ratio(scores.logprobs, traj.logprobs, traj.mask)
        metrics = drift_metrics(scores, traj, by_token)
        metrics["clip_fraction"] = Mean.of(jax.lax.stop_gradient(cut), counted)
        return Loss({"policy": Mean.of(values, counted)}, metrics)

    return loss


def _check_clip(clip: float) -> None:
    if clip < 0:
        raise ValueError(f"clip: expected a width of at least 0, found {clip}")
