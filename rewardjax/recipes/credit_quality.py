"""Where an advantage puts its credit, on tasks that know which steps mattered."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.credit import Credit, prefix_tree
from rewardjax.evaluation.verification import ranking_auc
from rewardjax.recipes.policy_gradient import Learner
from rewardjax.statistics import Mean, masked_mean
from rewardjax.training.state import Metrics
from rewardjax.trajectory import Trajectory


def credit_watch(
    assign: Credit,
    judge: Callable[[Trajectory], tuple[Bool[Array, "batch time"], Bool[Array, "batch time"]]],
    group_size: int,
) -> Learner:
    """A learner that learns nothing and logs `credit_quality`, and `branching` of each batch.

    `branching` is the share of acted steps at which the value of the group's prefix tree changes.

    Args:
      assign: `(rewards, traj) -> advantages`, what is watched.
      judge: the steps that decided, and well; those that decided, and badly.
      group_size: adjacent rows to a group.
    """

    def look(state, traj, rewards, key):
        found = credit_quality(assign(rewards, traj), traj.mask, *judge(traj))
        change = prefix_tree(rewards, traj, group_size=group_size, outcome_weight=0.0)
        return state, found | {"branching": Mean.of(change != 0, traj.mask)}

    return Learner(lambda key: {}, lambda state, traj, key: (state, traj, {}), look)


def credit_quality(
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    right: Bool[Array, "batch time"],
    wrong: Bool[Array, "batch time"],
) -> Metrics:
    """How well advantages tell the steps that mattered from the others, and right from wrong.

    Args:
      advantages: of each step.
      mask: on at acted steps.
      right: on at acted steps that decided, and well.
      wrong: on at acted steps that decided, and badly.

    Returns:
      `at_decisions`: of the advantages' absolute deviations from their row's mean, the share at
      deciding steps, in [0, 1]; weight 0 where no row has any. `spared`: in rows with right and
      wrong steps, the mean advantage of the right ones less that of the wrong ones.
    """
    mean = masked_mean(advantages, mask, axis=1)[:, None]
    high = jnp.max(advantages, axis=1, where=mask, initial=-jnp.inf)
    low = jnp.min(advantages, axis=1, where=mask, initial=jnp.inf)
    # Rounding puts the mean of equal numbers beside them.
    mass = jnp.where(mask & (high > low)[:, None], jnp.abs(advantages - mean), 0.0)
    gap = masked_mean(advantages, right, axis=1) - masked_mean(advantages, wrong, axis=1)
    return {
        "at_decisions": Mean(jnp.sum(jnp.where(right | wrong, mass, 0.0)), jnp.sum(mass)),
        "spared": Mean.of(gap, jnp.any(right, axis=1) & jnp.any(wrong, axis=1)),
    }


def slip_auc(
    values: Float[Array, "batch time"],
    right: Bool[Array, "batch time"],
    steps: Bool[Array, "batch time"],
) -> Mean:
    """How often the steps' values rank a right step above a row's first wrong one, in [0, 1].

    What follows a wrong step is left out: whether it is right is a matter of taste.

    Args:
      values: of each step, such as process rewards.
      right: on at steps that are right.
      steps: on at steps; a row's other columns do not count.
    """
    wrong = steps & ~right
    counted = steps & (jnp.cumsum(wrong, axis=1) - wrong == 0)
    return ranking_auc(values.reshape(-1), right.reshape(-1), counted.reshape(-1))
