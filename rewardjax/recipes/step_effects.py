"""Rewards of denoising steps by what each changed, and whether credit agrees with the truth."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from rewardjax import rewards
from rewardjax.credit import Credit
from rewardjax.sampling.flow import FlowPolicy
from rewardjax.statistics import Mean
from rewardjax.training.state import Metrics
from rewardjax.trajectory import Trajectory

# (samples, conditions) -> reward of each.
SampleReward = Callable[[Array, Array], Float[Array, "batch"]]


def with_stages(policy: FlowPolicy, params, traj: Trajectory, reward: SampleReward) -> Trajectory:
    """The trajectory with `info["stages"]` `[batch, window + 1]`, the rewards of finishing early.

    Entry k is the reward after k stochastic steps and then the ODE; the last one is the sample's.
    """
    ends = policy.completions(params, traj)
    return traj.with_info(stages=_stages(policy, traj, ends, reward))


def staged_rollout(policy: FlowPolicy, reward: SampleReward, *, completed: bool):
    """`policy.rollout` with `info["stages"]`: as `with_stages`, or the sample's reward `[batch, 1]` alone.

    Args:
      policy: the sampler.
      reward: of samples.
      completed: whether all states are completed, which costs evaluations of the network.
    """

    def rollout(params, condition, key: PRNGKeyArray) -> Trajectory:
        traj = policy.rollout(params, condition, key)
        if completed:
            return with_stages(policy, params, traj, reward)
        final = reward(policy.samples(traj), traj.observations.condition)
        return traj.with_info(stages=final[:, None])

    return rollout


def paid_at_the_end(traj: Trajectory) -> rewards.Reward:
    """The sample's reward, the last of `info["stages"]`, for all of its steps."""
    return rewards.outcome(traj.info["stages"][:, -1], traj.mask)


def increments(traj: Trajectory) -> rewards.Reward:
    """What each stochastic step changed: the differences of `info["stages"]`."""
    steps = traj.mask.shape[1]
    changes = jnp.diff(traj.info["stages"], axis=1)
    fill = ((0, 0), (0, steps - changes.shape[1]))
    return rewards.dense(jnp.pad(changes, fill), traj.mask, "gained")


def step_effects(
    policy: FlowPolicy,
    params,
    traj: Trajectory,
    reward: SampleReward,
    key: PRNGKeyArray,
    *,
    continuations: int,
) -> Float[Array, "batch time"]:
    """How much each stochastic step of a trajectory raised the reward to be expected; 0 elsewhere.

    The expectation is over `continuations` runs of the policy from the state before the step and from
    that after it. Over a row the effects sum to its reward less that expected from its start noise.
    """

    def once(key):
        return _stages(policy, traj, policy.completions(params, traj, key), reward)

    stages = jnp.mean(jax.lax.map(once, jax.random.split(key, continuations)), axis=0)
    return increments(traj.with_info(stages=stages)).steps


def sign_agreement(
    advantages: Float[Array, "batch time"],
    effects: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
) -> Metrics:
    """Whether advantages have the signs of the effects; 1/2 is chance.

    Returns:
      `agreement`: the share of acted steps at which they do. `weighted_agreement`: the same, with each
      step weighing by the size of its effect, since that of a small one is mostly Monte-Carlo noise.
    """
    same = jnp.sign(advantages) == jnp.sign(effects)
    size = jnp.where(mask, jnp.abs(effects), 0.0)
    weighted = Mean(jnp.sum(jnp.where(same, size, 0.0)), jnp.sum(size))
    return {"agreement": Mean.of(same, mask), "weighted_agreement": weighted}


def agreement_study(
    policy: FlowPolicy,
    reward: SampleReward,
    paid: Callable[[Trajectory], rewards.Reward],
    assign: Credit,
    *,
    continuations: int,
    early: int,
):
    """Measures credit against the truth: `(params, conditions, key) -> metrics`, to be jitted.

    Args:
      policy: that samples, in groups.
      reward: of samples.
      paid: the steps' rewards, from a trajectory with `stages`.
      assign: the credit.
      continuations: runs from each state.
      early: steps, from the first, that the metrics `early_...` look at.
    """

    def study(params, conditions, key: PRNGKeyArray) -> dict[str, Array]:
        sample_key, effect_key = jax.random.split(key)
        traj = policy.rollout(params, conditions, sample_key)
        traj = with_stages(policy, params, traj, reward)
        advantages = assign(paid(traj).steps, traj)
        effects = step_effects(
            policy, params, traj, reward, effect_key, continuations=continuations
        )
        first = traj.mask & (jnp.arange(policy.steps) < early)
        found = sign_agreement(advantages, effects, traj.mask)
        sooner = sign_agreement(advantages, effects, first)
        found |= {f"early_{name}": mean for name, mean in sooner.items()}
        return {name: mean.value for name, mean in found.items()}

    return study


def _stages(policy: FlowPolicy, traj: Trajectory, ends, reward: SampleReward) -> Array:
    condition = traj.observations.condition
    before = jax.vmap(reward, in_axes=(1, None), out_axes=1)(ends, condition)
    return jnp.concatenate([before, reward(policy.samples(traj), condition)[:, None]], axis=1)
