"""How likely a reference answer is after what the policy wrote, as a reward `[batch]`.

Every function reads the log-probabilities (nats) of a row's tokens and a mask that is on at the
reference answer's, and can be differentiated: where the policy that is trained gives the
log-probabilities, the reward has a gradient of its own. A row without an answer has a reward
that says nothing: probability 1, mean 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.statistics import log_mean_exp, masked_mean, to_groups


def answer_logprob(
    logprobs: Float[Array, "batch time"], mask: Bool[Array, "batch time"]
) -> Float[Array, "batch"]:
    """log pi(answer), the float32 sum over its tokens: at most 0."""
    return jnp.sum(jnp.where(mask, logprobs, 0.0).astype(jnp.float32), axis=1)


def answer_probability(
    logprobs: Float[Array, "batch time"], mask: Bool[Array, "batch time"]
) -> Float[Array, "batch"]:
    """pi(answer) (VeriFree, arXiv:2505.21493), from the summed log-probabilities: 0 to 1.

    Below about e^-87 it is 0 in float32, and so is its gradient.
    """
    return jnp.exp(answer_logprob(logprobs, mask))


def mean_probability(
    logprobs: Float[Array, "batch time"], mask: Bool[Array, "batch time"]
) -> Float[Array, "batch"]:
    """The mean probability of the answer's tokens (RLPR, arXiv:2506.18254): 0 to 1."""
    answer = jnp.where(mask, logprobs, 0.0).astype(jnp.float32)
    return masked_mean(jnp.exp(answer), mask, axis=1)


def mean_logprob(
    logprobs: Float[Array, "batch time"], mask: Bool[Array, "batch time"]
) -> Float[Array, "batch"]:
    """The mean log-probability of the answer's tokens, so that long answers do not dominate."""
    return masked_mean(logprobs, mask, axis=1)


def group_logprob(
    logprobs: Float[Array, "batch time"], mask: Bool[Array, "batch time"], *, group_size: int
) -> Float[Array, "batch"]:
    """log of the mean of pi(answer) over each group of adjacent rows (JEPO, arXiv:2503.19618).

    The same number for every row of a group. A group's rows have one answer.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    groups = to_groups(answer_logprob(logprobs, mask), group_size)
    return jnp.repeat(log_mean_exp(groups), group_size)
