"""Losses on comparisons, one value an item, for reward models and policies alike.

Pairwise losses read `difference = preferred - other` `[batch]`: two scores of a reward model, or
`beta` times two log-ratios of a policy. Average, or weigh, with `Mean.of(losses, weights)`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rewardjax.statistics import masked_mean

Scalar = float | Float[Array, ""]


def bradley_terry(
    difference: Float[Array, "batch"],
    *,
    margin: Scalar | Float[Array, "#batch"] = 0.0,
    probability: Scalar | Float[Array, "#batch"] = 1.0,
) -> Float[Array, "batch"]:
    """`-p log s(d - m) - (1 - p) log s(m - d)`, s the logistic function.

    Args:
      difference: the first response's score less the second's, d.
      margin: m, by how much d must be positive for the model to say that both are equally likely to
        be preferred. It moves the model's prediction whatever the label (Llama 2, arXiv:2307.09288,
        Eq. 2, for p = 1); exchanging the responses exchanges the signs of d and m, and p with 1 - p.
      probability: p in [0, 1], the label: how probably the first is preferred.
    """
    logits = difference - margin
    return -(
        probability * jax.nn.log_sigmoid(logits) + (1.0 - probability) * jax.nn.log_sigmoid(-logits)
    )


def hinge(difference: Float[Array, "batch"], *, margin: Scalar = 1.0) -> Float[Array, "batch"]:
    """`max(0, margin - d)`: nothing to gain beyond the margin (SLiC-HF, arXiv:2305.10425)."""
    return jnp.maximum(0.0, margin - difference)


def ipo(difference: Float[Array, "batch"], beta: Scalar) -> Float[Array, "batch"]:
    """`(h - 1/(2 beta))^2`, with h the difference of log-ratios, not scaled by `beta`.

    Azar et al. (arXiv:2310.12036), Eq. 17; `beta > 0` is their tau.
    """
    return (difference - 1.0 / (2.0 * beta)) ** 2


def logit_regression(
    difference: Float[Array, "batch"],
    probability: Float[Array, "batch"],
    *,
    smallest: float = 1e-3,
) -> Float[Array, "batch"]:
    """`(d - logit p)^2`: the difference that says how probable the preference is, and no more.

    iREPO (arXiv:2405.15230) on `beta` times two log-ratios; its minimum is Bradley-Terry's for the label p,
    with the same pull however certain the label is.

    Args:
      difference: the first response's score less the second's, d.
      probability: p, how probably the first is preferred; kept within `smallest` of 0 and 1.
      smallest: above 0, below 1/2.
    """
    p = jnp.clip(probability, smallest, 1.0 - smallest)
    return (difference - (jnp.log(p) - jnp.log1p(-p))) ** 2


def log_ratio(
    logprobs: Float[Array, "*batch time"],
    reference_logprobs: Float[Array, "*batch time"],
    mask: Bool[Array, "*batch time"],
) -> Float[Array, "*batch"]:
    """`log p(response) - log reference(response)` in nats, summed over the mask."""
    difference = (logprobs - reference_logprobs).astype(jnp.float32)
    return jnp.sum(jnp.where(mask, difference, 0.0), axis=-1)


def dpo(
    policy_chosen: Float[Array, "batch"],
    policy_rejected: Float[Array, "batch"],
    reference_chosen: Float[Array, "batch"],
    reference_rejected: Float[Array, "batch"],
    *,
    beta: Scalar,
    label_smoothing: Scalar = 0.0,
) -> Float[Array, "batch"]:
    """Direct preference optimisation (arXiv:2305.18290, Eq. 7) on whole responses' log-probs.

    `label_smoothing` in [0, 0.5) is how probably a label is wrong (conservative DPO).
    """
    difference = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return bradley_terry(beta * difference, probability=1.0 - label_smoothing)


def kto_reference_point(
    mismatched: Float[Array, "batch"], counted: Bool[Array, "batch"] | None = None
) -> Float[Array, ""]:
    """KTO's z: the batch's KL(policy || reference) from mismatched pairs, at least 0, no gradient.

    Args:
      mismatched: `log_ratio` of each prompt with another prompt's response.
      counted: rows to average over; all without it.
    """
    counted = jnp.ones(mismatched.shape, bool) if counted is None else counted
    return jax.lax.stop_gradient(jnp.maximum(0.0, masked_mean(mismatched, counted)))


def kto(
    log_ratios: Float[Array, "batch"],
    desirable: Bool[Array, "batch"],
    reference_point: Float[Array, ""],
    *,
    beta: Scalar,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> Float[Array, "batch"]:
    """Kahneman-Tversky optimisation on single labelled responses (arXiv:2402.01306).

    `w_D (1 - s(beta (r - z)))` for desirable rows and `w_U (1 - s(beta (z - r)))` for the others.

    Args:
      log_ratios: r, `log_ratio` of each response with its own prompt.
      desirable: on where the response is a good one.
      reference_point: z, from `kto_reference_point`.
      beta: risk aversion, > 0.
      desirable_weight: w_D.
      undesirable_weight: w_U.
    """
    gain = beta * (log_ratios - jax.lax.stop_gradient(reference_point))
    return jnp.where(
        desirable,
        desirable_weight * jax.nn.sigmoid(-gain),
        undesirable_weight * jax.nn.sigmoid(gain),
    )


def plackett_luce(
    scores: Float[Array, "batch responses"], ranking: Int[Array, "batch responses"]
) -> Float[Array, "batch"]:
    """Negative log-probability of a full ranking: each place is a softmax over those left.

    Plackett (1975); as DPO's loss in arXiv:2305.18290, Appendix A.3. Two responses give Bradley-Terry.

    Args:
      scores: one score a response.
      ranking: the responses' indices, best first.
    """
    ordered = jnp.take_along_axis(scores, ranking, axis=-1)
    remaining = jax.lax.cumlogsumexp(ordered, axis=1, reverse=True)
    return jnp.sum(remaining - ordered, axis=-1)


def listwise_cross_entropy(
    scores: Float[Array, "batch responses"],
    best: Int[Array, "batch"],
    present: Bool[Array, "batch responses"] | None = None,
) -> Float[Array, "batch"]:
    """`-log softmax(scores)[best]`, the first place of `plackett_luce`: who is best, not in what order.

    Two responses give Bradley-Terry.

    Args:
      scores: one score a response.
      best: index of the best response, which has to be present.
      present: off where a row has no such response; all without it.
    """
    present = jnp.ones(scores.shape, bool) if present is None else present
    chosen = jnp.take_along_axis(scores, best[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(scores, axis=-1, where=present) - chosen
