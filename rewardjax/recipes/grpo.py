"""Group-relative policy optimisation (arXiv:2402.03300) of a language policy."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from rewardjax import credit, losses
from rewardjax.recipes.policy_gradient import (
    PolicyGradient,
    PolicyGradientConfig,
    scored,
    with_reference,
)
from rewardjax.rewards import Reward
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.trajectory import Trajectory


def grpo(
    config: PolicyGradientConfig,
    policy: LanguagePolicy,
    group_size: int,
    kl: float,
    *,
    reward: Callable[[Trajectory], Reward],
    **parts: Any,
) -> PolicyGradient:
    """GRPO with a penalty on the distance from the frozen parameters.

    Args:
      config: budget and cadence.
      policy: writes one response a prompt; here `group_size`.
      group_size: responses that are compared.
      kl: coefficient of the penalty, nats a token.
      reward: of responses.
      **parts: `PolicyGradient`'s (`prompts`, `learners`, `evaluate`, ...).
    """
    policy = dataclasses.replace(policy, group_size=group_size)
    close = losses.kl_to_reference(kl)
    loss = losses.policy_loss(surrogate=losses.clipped(0.2), regularisers=(close,))
    return PolicyGradient(
        config,
        init=policy.model.boxed_init,
        rollout=policy.rollout,
        annotate=with_reference(policy.score),
        reward=reward,
        credit=partial(credit.group_relative, group_size=group_size),
        loss=scored(policy.score, loss),
        **parts,
    )
