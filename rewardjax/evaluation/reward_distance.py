"""Distances between reward functions (STARC, arXiv:2309.15257; EPIC; DARD), and regret.

Two rewards order all policies alike exactly if they differ by a positive factor, potential shaping
and S'-redistribution (changes that the transitions average to 0). A distance of the STARC family
sends each reward to a canonical one of its class, scales that to norm 1, and measures what is left:

    d(R1, R2) = 1/2 m(s(R1) - s(R2)),    s(R) = c(R) / n(c(R)),    0 where c(R) = 0

Rewards are `R(s, a, s')`, [state, action, state], float32; `jax.vmap` makes batches. Of the MDP
only `transition`, `initial` and `discount` are read: the rewards are arguments.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rewardjax.envs.mdp import (
    EPSILON,
    MDP,
    advantage,
    centred,
    expected_return,
    expected_reward,
    optimal_policy,
    policy_value,
    uniform_policy,
)

Reward = Float[Array, "state action state"]
Scalar = Float[Array, ""]
# A linear map of rewards: `c(R)`, of the same shape.
Canonicalise = Callable[[Reward, MDP], Reward]
# A norm of rewards, or a seminorm: it may weight transitions by their probability.
Norm = Callable[[Reward, MDP], Scalar]


def potential_shaped(reward: Reward, potential: Float[Array, "state"], discount: float) -> Reward:
    """`R(s, a, s') + discount Phi(s') - Phi(s)` (Ng, Harada and Russell, 1999)."""
    return reward + discount * potential[None, None, :] - potential[:, None, None]


def redistributed(reward: Reward, change: Reward, mdp: MDP) -> Reward:
    """S'-redistribution: `change` is added, less its mean over `S'` for each (s, a)."""
    return reward + change - expected_reward(mdp.with_reward(change))[:, :, None]


def identity(reward: Reward, mdp: MDP) -> Reward:
    """No canonicalisation."""
    return reward


def val(reward: Reward, mdp: MDP) -> Reward:
    """Value-adjusted levelling: `E[R(s, a, S') + discount V(S')] - V(s)`, the same for every s'.

    `V` is the uniform policy's value, so this is its advantage. Valid for every transition function.
    """
    levels = advantage(mdp.with_reward(reward), uniform_policy(mdp))
    return jnp.broadcast_to(levels[:, :, None], reward.shape)


def val_potential(reward: Reward, mdp: MDP) -> Reward:
    """`R(s, a, s') + discount V(s') - V(s)`, `V` the uniform policy's value: VAL without levelling.

    It removes potential shaping, but not S'-redistribution.
    """
    mdp = centred(mdp.with_reward(reward))
    value = policy_value(mdp, uniform_policy(mdp))
    return potential_shaped(mdp.reward, value, mdp.discount)


def epic(reward: Reward, mdp: MDP) -> Reward:
    """EPIC (arXiv:2006.13900): mean rewards as potentials, for uniform states, actions, successors.

    `R + discount E[R(s', A, S')] - E[R(s, A, S')] - discount E[R(S, A, S')]`. The transitions are
    not looked at: impossible ones count as much as others.
    """
    potential = jnp.mean(reward, axis=(1, 2))
    shaped = potential_shaped(reward, potential, mdp.discount)
    return shaped - mdp.discount * jnp.mean(potential)


def dard(reward: Reward, mdp: MDP) -> Reward:
    """DARD (arXiv:2201.10081): as EPIC, but successors come from the transitions.

    `R + E[discount R(s', A, S'') - R(s, A, S') - discount R(S', A, S'')]` with a uniform action
    `A`, `S'` drawn from (s, A) and `S''` from (s', A): the last term depends on s and s'.
    """
    potential = jnp.mean(expected_reward(mdp.with_reward(reward)), axis=1)
    ahead = jnp.einsum("uav,tav->uat", reward, mdp.transition, precision="highest")
    offset = jnp.einsum("sau,uat->st", mdp.transition, ahead, precision="highest")
    shaped = potential_shaped(reward, potential, mdp.discount)
    return shaped - mdp.discount * offset[:, None, :] / reward.shape[1]


def minimal(reward: Reward, mdp: MDP) -> Reward:
    """The reward of the smallest L2 norm among those of the class with the same scale.

    Of all rewards with expectation `b(s, a)` the smallest is `P(s' | s, a) b(s, a) / |P(. | s, a)|^2`,
    of norm `|b / |P||`; potentials add `discount P Phi - Phi` to `b`. So the best potential is a
    linear least-squares problem in `Phi`, of which only the residual is needed: `b / |P|` less its
    projection on the potentials, from a QR decomposition.
    """
    states, actions, _ = reward.shape
    size = jnp.sqrt(jnp.sum(mdp.transition**2, axis=-1, keepdims=True))
    gradients = (mdp.discount * mdp.transition - jnp.eye(states)[:, None, :]) / size
    basis, _ = jnp.linalg.qr(gradients.reshape(states * actions, states))
    target = (expected_reward(centred(mdp.with_reward(reward))) / size[..., 0]).ravel()
    along = jnp.matmul(target, basis, precision="highest")
    residual = target - jnp.matmul(basis, along, precision="highest")
    return mdp.transition / size * residual.reshape(states, actions, 1)


def lp_norm(order: float, *, weighted: bool = False) -> Norm:
    """The norm `(sum |R|^p)^(1/p)` over transitions; the largest `|R|` for an infinite order.

    Args:
      order: p, at least 1.
      weighted: each term is multiplied by `P(s' | s, a)`; for an infinite order, impossible
        transitions are left out.

    Raises:
      ValueError: an order below 1.
    """
    if not order >= 1:
        raise ValueError(f"order: expected a number of at least 1, found {order}")

    def norm(reward: Reward, mdp: MDP) -> Scalar:
        size = jnp.abs(reward)
        if order == jnp.inf:
            return jnp.max(jnp.where(mdp.transition > 0, size, 0.0) if weighted else size)
        powers = size**order * (mdp.transition if weighted else 1.0)
        return jnp.sum(powers) ** (1 / order)

    return norm


L1, L2, LINF = lp_norm(1), lp_norm(2), lp_norm(jnp.inf)
WEIGHTED_L1, WEIGHTED_L2 = lp_norm(1, weighted=True), lp_norm(2, weighted=True)


def standardise(
    reward: Reward, mdp: MDP, canonicalise: Canonicalise = val, norm: Norm = WEIGHTED_L2
) -> Reward:
    """`c(R) / n(c(R))`; 0 where the canonical reward is 0.

    A canonical reward counts as 0 if its norm is within rounding, `8 eps / (1 - discount)`, of the
    norms of the reward and of its expectations.
    """
    levels = expected_reward(mdp.with_reward(reward))[:, :, None]
    put_in = norm(reward, mdp) + norm(jnp.broadcast_to(levels, reward.shape), mdp)
    canonical = canonicalise(reward, mdp)
    size = norm(canonical, mdp)
    nonzero = size > 8 * EPSILON / (1 - mdp.discount) * put_in
    return jnp.where(nonzero, canonical / jnp.where(nonzero, size, 1.0), 0.0)


def starc_distance(
    r1: Reward,
    r2: Reward,
    mdp: MDP,
    *,
    canonicalise: Canonicalise = val,
    norm: Norm = WEIGHTED_L2,
    distance: Norm | None = None,
) -> Scalar:
    """`1/2 m(s(R1) - s(R2))`: in [0, 1] if the distance is the norm.

    Args:
      r1: a reward.
      r2: another.
      mdp: transitions and discount.
      canonicalise: c; `val` and `minimal` make a distance that is sound and complete.
      norm: n, which scales the canonical rewards.
      distance: m, the norm of their difference; `norm` without it.
    """
    measure = norm if distance is None else distance
    s1, s2 = (standardise(reward, mdp, canonicalise, norm) for reward in (r1, r2))
    return 0.5 * measure(s1 - s2, mdp)


class Regrets(NamedTuple):
    """What is lost by the other reward's optimal policy, of the range of returns; in [0, 1].

    Attributes:
      first: under R1 by the policy optimal for R2.
      second: under R2 by the policy optimal for R1.
    """

    first: Scalar
    second: Scalar


def regrets(r1: Reward, r2: Reward, mdp: MDP) -> Regrets:
    """`(J1(pi1) - J1(pi2)) / (max J1 - min J1)`, and the same with the rewards exchanged.

    0 for a reward under which all policies are equal within rounding: if the range of returns is below
    `64 eps / (1 - discount)` times the largest expected reward.
    """
    rewards = jnp.stack([r1, r2])

    def returns(reward: Reward, policies: Float[Array, "policy state action"]) -> Array:
        return jax.vmap(expected_return, (None, 0))(mdp.with_reward(reward), policies)

    # All in one batch: each of the solvers compiles once.
    plan = jax.vmap(lambda reward: optimal_policy(mdp.with_reward(reward)))
    best1, best2, worst1, worst2 = plan(jnp.concatenate([rewards, -rewards]))
    policies = jnp.stack([best1, best2, worst1]), jnp.stack([best2, best1, worst2])
    levels = jax.vmap(lambda reward: centred(mdp.with_reward(reward)).reward)(rewards)
    highest, other, lowest = jax.vmap(returns)(levels, jnp.stack(policies)).T
    expected = jax.vmap(lambda reward: expected_reward(mdp.with_reward(reward)))(rewards)
    largest = jnp.max(jnp.abs(expected), axis=(1, 2))
    some = highest - lowest > 64 * EPSILON / (1 - mdp.discount) * largest
    lost = (highest - other) / jnp.where(some, highest - lowest, 1.0)
    return Regrets(*jnp.where(some, jnp.clip(lost, 0.0, 1.0), 0.0))
