"""Credit by time: discounted returns, and generalised advantages from a critic's values.

Only steps that the policy took exist here: rewards off the mask are ignored, and a discount counts
acted steps, so that a tool's output between two turns costs nothing. The episode ends, with value
0, after a row's last acted step; where it was only cut off there, `info["bootstrap"]` says what the
critic expects of the rest.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.trajectory import Trajectory

Scalar = float | Float[Array, ""]


def discounted_returns(
    rewards: Float[Array, "batch time"], traj: Trajectory, *, discount: Scalar = 1.0
) -> Float[Array, "batch time"]:
    """The discounted sum of the rewards from each acted step on; 0 off the mask."""
    values, ended = jnp.zeros_like(rewards), jnp.zeros(rewards.shape[:1])
    return _lambda_advantages(rewards, values, ended, traj.mask, discount, 1.0)


def gae(
    rewards: Float[Array, "batch time"],
    traj: Trajectory,
    *,
    discount: Scalar = 1.0,
    lam: Scalar = 0.95,
) -> Float[Array, "batch time"]:
    """Generalised advantage estimation (arXiv:1506.02438, Eq. 16); 0 off the mask.

    `A_t = r_t + discount V_{t+1} - V_t + discount lam A_{t+1}`, t + 1 being the next acted step.

    Args:
      rewards: the reward of each step.
      traj: its `info["values"]`, `[batch, time]`, is the critic's value of the state in which the
        action at each step is taken. `info["bootstrap"]`, `[batch]`, if it has it, is V after a
        row's last acted step; else that is 0.
      discount: of rewards, in [0, 1], per acted step.
      lam: in [0, 1]; 0 trusts the critic after one step, 1 trusts the returns.

    Raises:
      KeyError: `traj.info` lacks `values`.
    """
    bootstrap = traj.info.get("bootstrap", jnp.zeros(rewards.shape[:1]))
    return _lambda_advantages(rewards, _values(traj), bootstrap, traj.mask, discount, lam)


def lambda_returns(
    rewards: Float[Array, "batch time"],
    traj: Trajectory,
    *,
    discount: Scalar = 1.0,
    lam: Scalar = 0.95,
) -> Float[Array, "batch time"]:
    """A critic's TD(lambda) targets, `gae + values`; 0 off the mask. Arguments as for `gae`."""
    advantages = gae(rewards, traj, discount=discount, lam=lam)
    return jnp.where(traj.mask, advantages + _values(traj), 0.0)


def td_targets(
    rewards: Float[Array, "batch time"], traj: Trajectory, *, discount: Scalar = 1.0
) -> Float[Array, "batch time"]:
    """A critic's one-step targets, `r_t + discount V_{t+1}`; 0 off the mask."""
    return lambda_returns(rewards, traj, discount=discount, lam=0.0)


def _values(traj: Trajectory) -> Float[Array, "batch time"]:
    if "values" not in traj.info:
        raise KeyError(
            f"traj.info lacks a critic's 'values' [batch, time]; found {sorted(traj.info)}"
        )
    return traj.info["values"].astype(jnp.float32)


def _lambda_advantages(
    rewards: Float[Array, "batch time"],
    values: Float[Array, "batch time"],
    bootstrap: Float[Array, "batch"],
    mask: Bool[Array, "batch time"],
    discount: Scalar,
    lam: Scalar,
) -> Float[Array, "batch time"]:
    def backward(
        later: tuple[Array, Array], step: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        next_value, next_advantage = later
        reward, value, acted = step
        error = reward + discount * next_value - value
        advantage = error + discount * lam * next_advantage
        # A step that the policy did not take hands on what lies after it.
        carry = (jnp.where(acted, value, next_value), jnp.where(acted, advantage, next_advantage))
        return carry, jnp.where(acted, advantage, 0.0)

    after = bootstrap.astype(jnp.float32)
    steps = (rewards.astype(jnp.float32).T, values.T, mask.T)
    _, advantages = jax.lax.scan(backward, (after, jnp.zeros_like(after)), steps, reverse=True)
    return advantages.T
