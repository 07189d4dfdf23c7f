"""Matching a policy to a posterior over a prompt's sampled responses.

A prompt has n responses of a proposal q'. Under the target p exp(r / beta) / Z and under the policy q they
have importance weights

    a_i ~ p(y_i) / q'(y_i) * exp(r(y_i) / beta)            b_i ~ q(y_i) / q'(y_i)

both normalised over the n (BRAIn, arXiv:2402.02479). The sums run over responses, one value a prompt.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Group = Float[Array, "batch responses"]
# What is subtracted from the target's weights, of the policy's log-ratios to the proposal.
Baseline = Callable[[Group], Group]


def posterior_weights(
    rewards: Group, beta: float | Float[Array, ""], prior: Group | None = None
) -> Group:
    """a: the posterior's self-normalised importance weights; rows sum to 1.

    Args:
      rewards: of each response, r.
      beta: above 0; towards 0 all the weight is on the best response.
      prior: `log p(y) - log q'(y)`; 0 where the proposal is the prior.
    """
    return jax.nn.softmax(rewards / beta + (0.0 if prior is None else prior), axis=-1)


def self_normalised(log_ratios: Group) -> Group:
    """b: the policy's importance weights, which sum to 1 as the target's do (BRAIn)."""
    return jax.nn.softmax(log_ratios, axis=-1)


def unnormalised(log_ratios: Group) -> Group:
    """The importance weights `q / (n q')`, which sum to 1 on average (GDC++, Korbak et al., 2022)."""
    return jnp.exp(log_ratios) / log_ratios.shape[-1]


def no_baseline(log_ratios: Group) -> Group:
    """0 (DPG, Parshakova et al., 2019)."""
    return jnp.zeros_like(log_ratios)


def self_normalised_kl(log_ratios: Group, target: Group) -> Float[Array, "batch"]:
    """`KL(a || b)` in nats: 0 where the policy's weights are the target's.

    Its gradient by `log q(y_i)` is `b_i - a_i`. With two responses and all the weight on one it is DPO's
    loss with beta 1 (the proposal is the reference).

    Args:
      log_ratios: `log q(y) - log q'(y)` of each response.
      target: a; no gradient goes there.
    """
    target = jax.lax.stop_gradient(target)
    cross_entropy = -jnp.sum(target * jax.nn.log_softmax(log_ratios, axis=-1), axis=-1)
    return cross_entropy - jnp.sum(jax.scipy.special.entr(target), axis=-1)


def weighted_imitation(
    log_ratios: Group, target: Group, baseline: Baseline
) -> Float[Array, "batch"]:
    """`-sum_i sg[a_i - baseline_i] log q(y_i)/q'(y_i)`: descends along `(a_i - baseline_i) grad log q(y_i)`.

    With `self_normalised` its gradient is that of `self_normalised_kl`. The value means nothing.

    Args:
      log_ratios: `log q(y) - log q'(y)` of each response.
      target: a.
      baseline: `self_normalised`, `unnormalised` or `no_baseline`.
    """
    weights = jax.lax.stop_gradient(target - baseline(log_ratios))
    return -jnp.sum(weights * log_ratios, axis=-1)
