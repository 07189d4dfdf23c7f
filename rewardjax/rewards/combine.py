"""Several rewards made into one.

A row is applicable if any component is; components say nothing about rows where they are not. The
result's `parts` hold each component's outcome as `<name>` and its share as `<name>_weighted`; the
parts of a component that is itself a combination are kept as `<name>/<part>`.
"""

import functools
import operator
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.rewards.reward import Reward, outcome
from rewardjax.statistics import masked_mean, masked_std, to_groups

Scalar = float | Float[Array, ""]


def weighted_sum(rewards: Mapping[str, Reward], weights: Mapping[str, Scalar]) -> Reward:
    """Step by step, `sum_k weight_k reward_k`: for credit that normalises after the sum.

    Raises:
      ValueError: `rewards` is empty, or it and `weights` have different names.
    """
    _check_names(rewards, weights)
    steps = sum((weights[name] * rewards[name].steps for name in rewards), start=jnp.float32(0))
    shares = {name: weights[name] * reward.outcome for name, reward in rewards.items()}
    return Reward(steps, _any_applicable(rewards), _parts(rewards, shares))


def normalised_sum(
    rewards: Mapping[str, Reward],
    weights: Mapping[str, Scalar],
    traj_mask: Bool[Array, "batch time"],
    *,
    group_size: int,
    ddof: int = 1,
    epsilon: Scalar = 1e-6,
) -> Reward:
    """`sum_k weight_k z_k`, on the last acted step, z_k being component k's outcome in its group.

    Each outcome is shifted and scaled to mean 0 and deviation 1 over the group's applicable rows
    (GDPO's order: normalise, then sum), so that no component drowns another by its scale. An
    outcome that is the same in all of those rows gives 0.

    Args:
      rewards: components by name.
      weights: their weights, by the same names.
      traj_mask: the trajectories' `mask`.
      group_size: rows to a group; a group's rows are adjacent.
      ddof: taken off the number of rows in the standard deviation.
      epsilon: added to the standard deviation, in units of reward.

    Raises:
      ValueError: `rewards` is empty, or it and `weights` have different names, or the batch is not
        a whole number of groups.
    """
    _check_names(rewards, weights)
    shares = {
        name: weights[name] * _group_scores(reward, group_size, ddof, epsilon)
        for name, reward in rewards.items()
    }
    summed = sum(shares.values(), start=jnp.float32(0))
    applicable = _any_applicable(rewards)
    steps = outcome(summed, traj_mask, applicable=applicable).steps
    return Reward(steps, applicable, _parts(rewards, shares))


def product(rewards: Mapping[str, Reward], traj_mask: Bool[Array, "batch time"]) -> Reward:
    """`prod_k outcome_k` on the last acted step: a conjunction, where outcomes are 0 or 1.

    A component counts as 1, not 0, in rows where it does not apply. There are no weights, and so no
    `<name>_weighted` parts.

    Raises:
      ValueError: `rewards` is empty.
    """
    _check_names(rewards, rewards)
    factors = [jnp.where(reward.applicable, reward.outcome, 1.0) for reward in rewards.values()]
    applicable = _any_applicable(rewards)
    values = functools.reduce(operator.mul, factors)
    steps = outcome(values, traj_mask, applicable=applicable).steps
    return Reward(steps, applicable, _parts(rewards, {}))


def _group_scores(
    reward: Reward, group_size: int, ddof: int, epsilon: Scalar
) -> Float[Array, "batch"]:
    outcomes = to_groups(reward.outcome, group_size)
    counted = reward.applicable.reshape(outcomes.shape)
    high = jnp.max(outcomes, axis=1, keepdims=True, where=counted, initial=-jnp.inf)
    low = jnp.min(outcomes, axis=1, keepdims=True, where=counted, initial=jnp.inf)
    centred = outcomes - masked_mean(outcomes, counted, axis=1)[:, None]
    spread = masked_std(outcomes, counted, axis=1, ddof=ddof)[:, None]
    scores = centred / jnp.where(spread > 0, spread + epsilon, 1.0)
    # Compared, since rounding gives equal outcomes a tiny spread.
    return jnp.where(counted & (high > low), scores, 0.0).reshape(-1)


def _any_applicable(rewards: Mapping[str, Reward]) -> Bool[Array, "batch"]:
    return functools.reduce(operator.or_, (reward.applicable for reward in rewards.values()))


def _parts(rewards: Mapping[str, Reward], shares: Mapping[str, Array]) -> dict[str, Array]:
    parts = {f"{name}_weighted": share for name, share in shares.items()}
    for name, reward in rewards.items():
        parts[name] = reward.outcome
        if len(reward.parts) > 1:
            parts |= {f"{name}/{part}": values for part, values in reward.parts.items()}
    return parts


def _check_names(rewards: Mapping[str, Reward], weights: Mapping[str, object]) -> None:
    if not rewards:
        raise ValueError("rewards: expected at least one component, found none")
    if set(rewards) != set(weights):
        raise ValueError(
            "rewards and weights must have the same names; "
            f"rewards have {sorted(rewards)}, weights have {sorted(weights)}"
        )
