"""Proximal policy optimisation (arXiv:1707.06347) of control policies."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax.numpy as jnp

from rewardjax import credit, losses, rewards
from rewardjax.models.actor_critic import VectorScorer
from rewardjax.recipes.critic import critic
from rewardjax.recipes.policy_gradient import (
    Learner,
    PolicyGradient,
    PolicyGradientConfig,
    scored,
)
from rewardjax.rewards import Reward
from rewardjax.sampling.control import ControlPolicy
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Budget and settings.

    Attributes:
      rl: budget of the policy; its `prompts` are episodes a step.
      critic: optimizer of the value function, which takes as many gradient steps as the policy.
      discount: of rewards, per step.
      lam: of the generalised advantages.
      clip: width of the surrogate's clip range.
      entropy: coefficient of the entropy bonus.
    """

    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=32, epochs=4, minibatches=4, optimizer=OptimizerConfig(learning_rate=1e-3)
    )
    critic: OptimizerConfig = OptimizerConfig(learning_rate=3e-3)
    discount: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    entropy: float = 0.0


def environment_reward(traj: Trajectory) -> Reward:
    """What the environment gave for each step."""
    return rewards.dense(traj.info["environment_reward"], traj.mask, "environment")


def ppo(
    config: PPOConfig,
    policy: ControlPolicy,
    *,
    reward: Callable[[Trajectory], Reward] = environment_reward,
    learners: Mapping[str, Learner] | None = None,
    measure=None,
    evaluate=None,
) -> PolicyGradient:
    """PPO with a value function of observations, bootstrapped where only the time was over.

    Args:
      config: budget and settings.
      policy: gives parameters, episodes and scores.
      reward: `traj -> Reward`.
      learners: trained beside policy and value function; they observe first.
      measure: as for `PolicyGradient`.
      evaluate: as for `PolicyGradient`.
    """
    value = VectorScorer(policy.environment.observation_size, policy.widths)
    rl = config.rl

    def bootstrap(params, traj):
        found = value.score(params, traj.info["final_observation"])
        return jnp.where(traj.info["terminated"], 0.0, found)

    values = critic(
        value,
        config.critic,
        rl.loop.steps,
        values=lambda params, traj: value.score(params, traj.observations),
        bootstrap=bootstrap,
        discount=config.discount,
        lam=config.lam,
        clip=None,
        updates=rl.epochs * rl.minibatches,
        rows=rl.prompts // rl.minibatches,
    )
    bonus = (losses.entropy_bonus(config.entropy),) if config.entropy else ()
    clipped = losses.clipped(config.clip, config.clip)
    return PolicyGradient(
        rl,
        init=policy.boxed_init,
        rollout=policy.rollout,
        prompts=policy.environment.reset,
        reward=reward,
        credit=partial(credit.whitened(credit.gae), discount=config.discount, lam=config.lam),
        loss=scored(policy.score, losses.policy_loss(surrogate=clipped, regularisers=bonus)),
        learners={**(learners or {}), "critic": values},
        measure=measure,
        evaluate=evaluate,
    )
