"""Policy-gradient losses, composed from a ratio, a surrogate, regularisers and an aggregation.

    loss = policy_loss(surrogate=clipped(0.2, 0.28), regularisers=(kl_to_reference(0.04),))
    objective = total(loss(scores, traj, advantages))

GSPO is `policy_loss(surrogate=clipped(3e-4, 4e-4), ratio=sequence_ratio, aggregate=per_sequence)`.
A variant is another function with the same signature. Advantages carry no gradient.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from rewardjax.losses.aggregate import Aggregate, per_token
from rewardjax.losses.kl import k1, k3
from rewardjax.losses.scores import Scores
from rewardjax.statistics import Mean, masked_mean
from rewardjax.trajectory import Trajectory

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut to +-this (nats), far beyond any clip range, so that no ratio overflows."""


@struct.dataclass
class Loss:
    """A loss in parts: the objective is the sum of the terms' values.

    Attributes:
      terms: what is minimised, each already scaled by its coefficient.
      metrics: what is only logged; no gradient.
    """

    terms: dict[str, Mean]
    metrics: dict[str, Mean]


Scalar = float | Float[Array, ""]
Ratio = Callable[
    [Float[Array, "batch time"], Float[Array, "batch time"], Bool[Array, "batch time"]],
    Float[Array, "batch time"],
]
Surrogate = Callable[
    [Float[Array, "batch time"], Float[Array, "batch time"]], Float[Array, "batch time"]
]
Regulariser = Callable[[Scores, Trajectory], tuple[str, Mean]]
PolicyLoss = Callable[[Scores, Trajectory, Float[Array, "batch time"]], Loss]


def total(loss: Loss) -> Float[Array, ""]:
    """The scalar to minimise."""
    return jnp.sum(jnp.stack([term.value for term in loss.terms.values()]))


def _log_ratio(
    logprobs: Float[Array, "batch time"],
    behaviour: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
) -> Float[Array, "batch time"]:
    difference = jnp.where(mask, logprobs - behaviour, 0.0).astype(jnp.float32)
    return jnp.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def token_ratio(
    logprobs: Float[Array, "batch time"],
    behaviour: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
) -> Float[Array, "batch time"]:
    """How much likelier each action is now than when it was sampled; 1 off the mask."""
    return jnp.exp(_log_ratio(logprobs, behaviour, mask))


def sequence_ratio(
    logprobs: Float[Array, "batch time"],
    behaviour: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
) -> Float[Array, "batch time"]:
    """The geometric mean of a row's token ratios, at each of its tokens; 1 off the mask.

    GSPO (arXiv:2507.18071, Eq. 7). The gradient flows to every token of the row.
    """
    mean = masked_mean(_log_ratio(logprobs, behaviour, mask), mask, axis=-1)
    return jnp.exp(jnp.where(mask, mean[:, None], 0.0))


def unclipped(
    ratio: Float[Array, "batch time"], advantages: Float[Array, "batch time"]
) -> Float[Array, "batch time"]:
    """The importance-weighted surrogate, `-ratio * advantage`."""
    return -ratio * advantages


def clipped(low: float = 0.2, high: float = 0.2) -> Surrogate:
    """PPO's pessimistic surrogate (arXiv:1707.06347, Eq. 7), clipped to `[1 - low, 1 + high]`.

    `high > low` is DAPO's clip-higher (arXiv:2503.14476).

    Raises:
      ValueError: `low` or `high` is negative.
    """
    if low < 0 or high < 0:
        raise ValueError(f"low, high: expected clip widths of at least 0, found {low} and {high}")

    def surrogate(
        ratio: Float[Array, "batch time"], advantages: Float[Array, "batch time"]
    ) -> Float[Array, "batch time"]:
        bounded = jnp.clip(ratio, 1.0 - low, 1.0 + high)
        return -jnp.minimum(ratio * advantages, bounded * advantages)

    return surrogate


def kl_to_reference(
    coefficient: Scalar,
    *,
    estimator: Callable[[Array, Array], Array] = k3,
    aggregate: Aggregate = per_token,
) -> Regulariser:
    """`coefficient` times an estimate of KL(policy || reference), as the term `kl_to_reference`.

    Reads `traj.info["reference_logprobs"]`, `[batch, time]`. The estimators differ in their
    gradients: see `rewardjax.losses.kl`.
    """

    def regulariser(scores: Scores, traj: Trajectory) -> tuple[str, Mean]:
        if "reference_logprobs" not in traj.info:
            raise KeyError(
                "kl_to_reference: traj.info lacks 'reference_logprobs' [batch, time]; "
                f"found {sorted(traj.info)}"
            )
        # Masked before exp: an overflow off the mask would turn the gradient into NaN.
        logprobs = jnp.where(traj.mask, scores.logprobs, 0.0)
        reference = jnp.where(traj.mask, traj.info["reference_logprobs"], 0.0)
        kl = estimator(logprobs, jax.lax.stop_gradient(reference))
        return "kl_to_reference", aggregate(kl, traj.mask).scale(coefficient)

    return regulariser


def entropy_bonus(coefficient: Scalar, *, aggregate: Aggregate = per_token) -> Regulariser:
    """`-coefficient` times the policy's entropy, as the term `entropy_bonus`."""

    def regulariser(scores: Scores, traj: Trajectory) -> tuple[str, Mean]:
        return "entropy_bonus", aggregate(scores.entropy, traj.mask).scale(-coefficient)

    return regulariser


def reward_gradient(
    reward: Callable[[Scores, Trajectory], Float[Array, "batch"]], coefficient: Scalar = 1.0
) -> Regulariser:
    """What a reward that depends on the policy adds to the score-function term, as `reward_gradient`.

        grad E[R] = E[R grad log pi + grad R]

    This is the second term, with all rows of the batch weighing the same; the first is that of
    `reinforce_loss` with rows' tokens summed, `by_constant(1.0)`.

    Args:
      reward: `(scores, traj) -> R`, differentiable in the scores.
      coefficient: 1 is the exact gradient, 0 leaves the score-function term alone.
    """

    def regulariser(scores: Scores, traj: Trajectory) -> tuple[str, Mean]:
        return "reward_gradient", Mean.of(-reward(scores, traj)).scale(coefficient)

    return regulariser


def policy_loss(
    *,
    surrogate: Surrogate,
    ratio: Ratio = token_ratio,
    aggregate: Aggregate = per_token,
    regularisers: Sequence[Regulariser] = (),
) -> PolicyLoss:
    """The loss of a surrogate on the ratio between the policy and the one that sampled.

    Terms: `policy`, and one for each regulariser. Metrics, over acted tokens: those of
    `drift_metrics`, and `clip_fraction`, the share of tokens at which the surrogate differs from
    the unclipped one.

    Returns:
      `loss(scores, traj, advantages [batch, time]) -> Loss`. It raises ValueError where two
      regularisers have one name.
    """

    def loss(scores: Scores, traj: Trajectory, advantages: Float[Array, "batch time"]) -> Loss:
        advantages = _constant_advantages(advantages, traj)
        ratios = ratio(scores.logprobs, traj.logprobs, traj.mask)
        values = surrogate(ratios, advantages)
        departs = (values != unclipped(ratios, advantages)).astype(jnp.float32)
        metrics = drift_metrics(scores, traj, ratios)
        metrics["clip_fraction"] = Mean.of(departs, traj.mask)
        return _compose(aggregate(values, traj.mask), regularisers, scores, traj, metrics)

    return loss


def reinforce_loss(
    *, aggregate: Aggregate = per_token, regularisers: Sequence[Regulariser] = ()
) -> PolicyLoss:
    """`-advantage * logprob`: the score-function estimator, for actions sampled by this policy.

    Terms, errors and the returned function are those of `policy_loss`; metrics those of
    `drift_metrics`.
    """

    def loss(scores: Scores, traj: Trajectory, advantages: Float[Array, "batch time"]) -> Loss:
        logprobs = jnp.where(traj.mask, scores.logprobs, 0.0)
        values = -_constant_advantages(advantages, traj) * logprobs
        metrics = drift_metrics(
            scores, traj, token_ratio(scores.logprobs, traj.logprobs, traj.mask)
        )
        return _compose(aggregate(values, traj.mask), regularisers, scores, traj, metrics)

    return loss


def drift_metrics(
    scores: Scores, traj: Trajectory, ratios: Float[Array, "batch time"]
) -> dict[str, Mean]:
    """How far the policy has moved from the one that sampled; means over acted tokens.

    Returns:
      `approx_kl_k1`, `approx_kl_k3`: KL(behaviour || policy) in nats. `logprob_difference`: mean
      absolute difference in nats. `entropy`: in nats. `ratio_max`: the largest of `ratios`, with
      weight 1, so that sums over micro-batches give the mean of their largest.
    """
    policy = jax.lax.stop_gradient(jnp.where(traj.mask, scores.logprobs, 0.0))
    behaviour = jnp.where(traj.mask, traj.logprobs, 0.0)
    largest = jnp.max(jax.lax.stop_gradient(ratios), where=traj.mask, initial=0.0)
    return {
        "approx_kl_k1": Mean.of(k1(behaviour, policy), traj.mask),
        "approx_kl_k3": Mean.of(k3(behaviour, policy), traj.mask),
        "logprob_difference": Mean.of(jnp.abs(policy - behaviour), traj.mask),
        "entropy": Mean.of(jax.lax.stop_gradient(scores.entropy), traj.mask),
        "ratio_max": Mean(largest, jnp.ones_like(largest)),
    }


def _constant_advantages(
    advantages: Float[Array, "batch time"], traj: Trajectory
) -> Float[Array, "batch time"]:
    return jax.lax.stop_gradient(jnp.where(traj.mask, advantages, 0.0))


def _compose(
    policy: Mean,
    regularisers: Sequence[Regulariser],
    scores: Scores,
    traj: Trajectory,
    metrics: dict[str, Mean],
) -> Loss:
    terms = {"policy": policy}
    for regulariser in regularisers:
        name, term = regulariser(scores, traj)
        if name in terms:
            raise ValueError(f"regularisers: two terms are named {name!r}; names must differ")
        terms[name] = term
    return Loss(terms, metrics)
