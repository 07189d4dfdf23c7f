"""What is measured of an agent that looks things up: episodes, evaluation, gains by kind of turn."""

import dataclasses
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from rewardjax.envs.lookup import ANSWERED, UNPLAYED, USEFUL, USELESS, LookupWorld
from rewardjax.recipes.agents import with_gain
from rewardjax.sampling.turns import TurnPolicy, dialogues
from rewardjax.statistics import Mean
from rewardjax.training.run import Run
from rewardjax.training.state import Metrics
from rewardjax.trajectory import Trajectory


def by_kind(traj: Trajectory) -> Metrics:
    """What turns gained, by what they were, and how many lookups were made; reads `info["gain"]`."""
    kinds = traj.info["kinds"]
    asked = (kinds != UNPLAYED) & (kinds != ANSWERED)
    return {
        "gain/useful": Mean.of(traj.info["gain"], kinds == USEFUL),
        "gain/useless": Mean.of(traj.info["gain"], kinds == USELESS),
        "tool_calls": Mean.of(jnp.sum(asked, axis=1)),
    }


@dataclasses.dataclass(frozen=True)
class LookupStudy:
    """An agent in the lookup world.

    Attributes:
      world: the environment.
      policy: one episode a question.
      evaluation_prompts: fresh questions at each evaluation.
    """

    world: LookupWorld
    policy: TurnPolicy
    evaluation_prompts: int

    def gained(self, params, traj: Trajectory) -> Trajectory:
        """Adds `info["gain"]`, what each turn told the policy about the answer."""
        return with_gain(self.policy.policy.model, params, traj, self.world.answer_of)

    @cached_property
    def sampled(self):
        """`(params, key, count) -> Trajectory` of fresh questions, compiled."""

        @partial(jax.jit, static_argnums=2)
        def sample(params, key, count: int):
            start_key, key = jax.random.split(key)
            return self.policy.rollout(params, self.policy.starts(start_key, count), key)

        return sample

    def evaluate(self, params, frozen, key: PRNGKeyArray) -> dict[str, Array]:
        """`accuracy`, `hard_accuracy` (questions of most hops), `known` (all hops looked up)."""
        info = self.sampled(params, key, self.evaluation_prompts).info
        hard = info["hops"] == self.world.most_hops
        return {
            "accuracy": jnp.mean(info["correct"]),
            "hard_accuracy": Mean.of(info["correct"], hard).value,
            "known": jnp.mean(info["known"] == info["hops"]),
        }

    def results(self, stage: Run, params: Any, step: int) -> dict[str, float]:
        """What an arm reports, from the logs of `evaluate` and `by_kind`; writes dialogues."""
        traj = jax.jit(self.gained)(params, self.sampled(params, stage.key, 8))
        gains = np.round(np.asarray(traj.info["gain"]), 3).tolist()
        rows = dialogues(traj, self.world.decode)
        stage.samples(step, [row | {"gain": g} for row, g in zip(rows, gains, strict=True)])
        watched = ("accuracy", "hard_accuracy", "known")
        curves = {name: stage.history(f"eval/{name}") for name in watched}
        found = {name: curve[-1] for name, curve in curves.items()}
        found["auc"] = np.mean(curves["accuracy"])
        found["silent"] = np.mean(stage.history("credit/silent"))
        found["tool_calls"] = stage.history("tool_calls")[-1]
        for kind in ("useful", "useless"):
            found[f"gain_{kind}"] = np.mean(stage.history(f"gain/{kind}"))
        return {name: float(value) for name, value in found.items()}
