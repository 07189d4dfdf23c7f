"""Which groups of responses a policy learns from."""

import jax.numpy as jnp

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
