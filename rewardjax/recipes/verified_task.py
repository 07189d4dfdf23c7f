"""What experiments on a task with a verifier share: a first policy, evaluation, the learning curve."""

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rewardjax.credit import Credit
from rewardjax.losses import PolicyLoss
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import language_modelling
from rewardjax.recipes.policy_gradient import (
    PolicyGradient,
    PolicyGradientConfig,
    scored,
    with_reference,
)
from rewardjax.recipes.preference_data import demonstrations
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.rewards import Reward
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.transcripts import transcripts
from rewardjax.training.run import Run
from rewardjax.trajectory import Prompts, Trajectory

Write = Callable[
    [PRNGKeyArray, Prompts], tuple[Int[Array, "n response"], Bool[Array, "n response"]]
]


@runtime_checkable
class World(Protocol):
    """A generated task: its prompts, its verifier, its words."""

    eos: int
    prompt_length: Any

    def prompts(self, key: PRNGKeyArray, n: int) -> Prompts:
        """Draw `n` prompts."""

    def verify(self, traj: Trajectory) -> Float[Array, "batch"]:
        """How right each response is, in [0, 1]."""

    def decode(self, ids: Any) -> str:
        """Token ids as text."""


def policy_on(world: Any, model: TransformerConfig, max_response: int) -> LanguagePolicy:
    """A fresh model's policy for prompts of `world.prompt_length` tokens; it stops at `world.eos`."""
    return LanguagePolicy(
        LanguageModel(model),
        max_new=max_response,
        stop=(world.eos,),
        prompt_columns=world.prompt_length,
    )


@dataclasses.dataclass(frozen=True)
class VerifiedTask:
    """A policy on a world.

    Attributes:
      world: generates prompts and verifies responses.
      policy: writes one response a prompt.
      evaluation_prompts: fresh ones at each evaluation.
    """

    world: World
    policy: LanguagePolicy
    evaluation_prompts: int = 512

    @classmethod
    def create(
        cls, world: World, model: TransformerConfig, max_response: int, evaluation_prompts: int
    ) -> "VerifiedTask":
        """A fresh model's policy, which stops at the world's `eos`."""
        return cls(world, policy_on(world, model, max_response), evaluation_prompts)

    def supervised(self, config: SupervisedConfig, write: Write) -> Supervised:
        """Training on demonstrations, `write(key, prompts) -> (tokens, valid)`."""
        return Supervised(
            config,
            init=self.policy.model.boxed_init,
            loss=language_modelling(self.policy.model),
            batches=demonstrations(self.world.prompts, write),
        )

    def policy_gradient(
        self,
        config: PolicyGradientConfig,
        group_size: int,
        *,
        reward: Callable[[Trajectory], Reward],
        credit: Credit,
        loss: PolicyLoss,
        evaluate=None,
        **parts: Any,
    ) -> PolicyGradient:
        """Training on groups of `group_size` responses to the world's prompts.

        `loss` takes `(scores, traj, advantages)`; `**parts` and `evaluate` are `PolicyGradient`'s,
        the latter by default `self.evaluate`.
        """
        policy = dataclasses.replace(self.policy, group_size=group_size)
        return PolicyGradient(
            config,
            init=policy.model.boxed_init,
            rollout=policy.rollout,
            prompts=self.world.prompts,
            reward=reward,
            credit=credit,
            loss=scored(policy.score, loss),
            evaluate=self.evaluate if evaluate is None else evaluate,
            **parts,
        )

    def reference_logprobs(self, frozen, traj: Trajectory) -> Trajectory:
        """Writes `info["reference_logprobs"]`; `frozen` are the reference's parameters."""
        return with_reference(self.policy.score)(frozen, traj)

    @cached_property
    def sampled(self) -> Callable[[Any, PRNGKeyArray, int], Trajectory]:
        """`(params, key, count) -> Trajectory` of fresh prompts, with `info["correct"]`; compiled."""

        @partial(jax.jit, static_argnums=2)
        def sample(params, key, count):
            ask, act = jax.random.split(key)
            traj = self.policy.rollout(params, self.world.prompts(ask, count), act)
            return traj.with_info(correct=self.world.verify(traj))

        return sample

    def evaluate(self, params, frozen, key: PRNGKeyArray) -> dict[str, Array]:
        """`accuracy` on fresh prompts, one response each."""
        traj = self.sampled(params, key, self.evaluation_prompts)
        return {"accuracy": jnp.mean(traj.info["correct"])}

    def show(self, stage: Run, params, step: int) -> None:
        """Write a few responses to the stage's samples."""
        traj = self.sampled(params, stage.key, 8)
        stage.samples(step, transcripts(traj, self.world.decode, columns=("correct",)))
