"""A reward: what each step earned, where it applies, and what it was made of."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from rewardjax.trajectory import last_step


class Reward(struct.PyTreeNode):
    """A reward of a batch of trajectories.

    Attributes:
      steps: what each step earned; 0 off the trajectory's mask and in rows that do not apply.
      applicable: rows that this reward says something about; off where nothing was acted.
      parts: for the log, each component's value by name, and by `<name>_weighted` what it added.
        Each is a sum over the row's steps, 0 where the component does not apply.
    """

    steps: Float[Array, "batch time"]
    applicable: Bool[Array, "batch"]
    parts: dict[str, Float[Array, "batch"]]

    @property
    def outcome(self) -> Float[Array, "batch"]:
        """The sum over each row's steps."""
        return jnp.sum(self.steps, axis=-1)


def outcome(
    values: Float[Array, "batch"],
    traj_mask: Bool[Array, "batch time"],
    *,
    name: str = "outcome",
    applicable: Bool[Array, "batch"] | None = None,
) -> Reward:
    """One value a row, on the last step that the policy took.

    Args:
      values: the rows' rewards; any value, NaN too, where the row does not apply.
      traj_mask: the trajectories' `mask`.
      name: the component's name in the log.
      applicable: rows that the reward says something about; all without it. Rows with nothing acted
        never are.
    """
    steps = jnp.where(last_step(traj_mask), values[:, None].astype(jnp.float32), 0.0)
    return _reward(steps, traj_mask, name, applicable)


def dense(
    values: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    name: str,
    *,
    applicable: Bool[Array, "batch"] | None = None,
) -> Reward:
    """One value a step; arguments otherwise as for `outcome`."""
    steps = jnp.where(mask, values.astype(jnp.float32), 0.0)
    return _reward(steps, mask, name, applicable)


def _reward(
    steps: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    name: str,
    applicable: Bool[Array, "batch"] | None,
) -> Reward:
    acted = jnp.any(mask, axis=-1)
    applicable = acted if applicable is None else acted & applicable
    steps = jnp.where(applicable[:, None], steps, 0.0)
    return Reward(steps, applicable, {name: jnp.sum(steps, axis=-1)})
