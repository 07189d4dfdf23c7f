"""Which groups of responses a policy learns from, and which responses of a group."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rewardjax.rewards.reward import Reward
from rewardjax.statistics import masked_mean, to_groups


def within_mean(reward: Reward, group_size: int, low: float, high: float) -> Reward:
    """The reward with groups left out whose mean outcome is not in `[low, high]`.

    Online prompt filtering: prompts that the policy always solves, or never, have nothing to teach
    (PRIME, arXiv:2502.01456, Section 3.4: 0.2 to 0.8; DAPO, arXiv:2503.14476). Rows left out do
    not apply: they are in no statistic and give no gradient.

    Raises:
      ValueError: the batch is not a whole number of groups, or `low > high`.
    """
    if low > high:
        raise ValueError(f"low, high: expected low <= high, found {low} and {high}")
    counted = to_groups(reward.applicable, group_size)
    mean = masked_mean(to_groups(reward.outcome, group_size), counted, axis=1)[:, None]
    # Means such as 0.2 must not fall out by rounding.
    inside = (mean >= low - 1e-6) & (mean <= high + 1e-6)
    applicable = (counted & inside).reshape(-1)
    return reward.replace(
        steps=jnp.where(applicable[:, None], reward.steps, 0.0), applicable=applicable
    )


RankFilter = Callable[[PRNGKeyArray, int, int], Int[Array, "groups kept"]]
"""The ranks that stay, 0 the best: `(key, groups, size) -> [groups, kept]`, for groups of `size`."""


def all_ranks(key: PRNGKeyArray, groups: int, size: int) -> Int[Array, "groups size"]:
    """Every response."""
    return _same(jnp.arange(size), groups)


def best(key: PRNGKeyArray, groups: int, size: int) -> Int[Array, "groups 1"]:
    """The best response alone (best-of-n)."""
    return _same(jnp.array([0]), groups)


def best_and_random(key: PRNGKeyArray, groups: int, size: int) -> Int[Array, "groups 2"]:
    """The best response and one of the others, each as probably (PF-PPO's BR, arXiv:2409.06957)."""
    other = jax.random.randint(key, (groups,), 1, size)
    return jnp.stack([jnp.zeros_like(other), other], axis=1)


def best_and_worst(key: PRNGKeyArray, groups: int, size: int) -> Int[Array, "groups 2"]:
    """The best and the worst response (PF-PPO's BW, arXiv:2409.06957)."""
    return _same(jnp.array([0, size - 1]), groups)


def middle(key: PRNGKeyArray, groups: int, size: int) -> Int[Array, "groups kept"]:
    """All but the best and the worst response."""
    return _same(jnp.arange(1, size - 1), groups)


def drawn(weights: Sequence[float]) -> RankFilter:
    """As many responses as the group has, drawn with replacement (PF-PPO's re-weighting).

    Args:
      weights: of each rank, best first, in proportion to its probability; one for each of a group.

    Raises:
      ValueError: a weight is negative, or none is positive.
    """
    shares = np.asarray(weights, np.float32)
    if np.any(shares < 0) or not np.any(shares > 0):
        raise ValueError(f"weights: expected numbers of at least 0, some above, found {weights}")

    def ranks(key: PRNGKeyArray, groups: int, size: int) -> Int[Array, "groups size"]:
        if len(shares) != size:
            raise ValueError(f"weights: expected one for each of {size}, found {len(shares)}")
        return jax.random.categorical(key, jnp.log(shares), shape=(groups, size))

    return ranks


def kept_rows(
    key: PRNGKeyArray, scores: Float[Array, "batch"], group_size: int, ranks: RankFilter
) -> Int[Array, "rows"]:
    """Numbers of the rows that stay, by their scores' ranks in groups of adjacent rows.

    Equal scores are ranked at random. The rows that stay of a group are adjacent, in the order of `ranks`.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    tie_key, rank_key = jax.random.split(key)
    groups = to_groups(scores, group_size)
    lots = jax.random.uniform(tie_key, groups.shape)
    order = jnp.lexsort((lots, -groups), axis=1)
    kept = jnp.take_along_axis(order, ranks(rank_key, *groups.shape), axis=1)
    return (jnp.arange(groups.shape[0])[:, None] * group_size + kept).reshape(-1)


def _same(ranks: Int[Array, "kept"], groups: int) -> Int[Array, "groups kept"]:
    return jnp.broadcast_to(ranks, (groups, *ranks.shape))
