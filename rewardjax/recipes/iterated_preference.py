"""Preference optimisation in rounds: collect labelled responses, minimise an objective, again."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax.data.sources import ArraySource
from rewardjax.losses import Loss
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.training.run import Run

# What the current policy writes for so many prompts, labelled by somebody: (params, frozen, key, prompts).
Collect = Callable[[Any, Any, PRNGKeyArray, int], dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class IterationConfig:
    """Budget of one iteration, and how many there are.

    Attributes:
      iterations: how often responses are collected.
      prompts: whose responses each iteration collects.
      training: of each iteration; the optimizer starts anew.
      fixed_reference: whether the reference stays the first policy; otherwise it is the policy at the
        start of the iteration.
    """

    iterations: int = 3
    prompts: int = 512
    training: SupervisedConfig = SupervisedConfig()
    fixed_reference: bool = False

    @property
    def at_once(self) -> "IterationConfig":
        """As many prompts and updates in one iteration: all responses are the first policy's."""
        loop = self.training.loop
        training = dataclasses.replace(
            self.training, loop=dataclasses.replace(loop, steps=loop.steps * self.iterations)
        )
        return dataclasses.replace(
            self, iterations=1, prompts=self.prompts * self.iterations, training=training
        )


class Iterates(NamedTuple):
    """What a run leaves.

    Attributes:
      params: of the policy after each iteration, the first policy before them.
      stages: each iteration's part of the run.
    """

    params: list[Any]
    stages: list[Run]

    def curve(self, metric: str) -> Float[np.ndarray, "points"]:
        """A logged metric over all iterations ("loss", "eval/gold")."""
        return np.concatenate([stage.history(metric) for stage in self.stages])


class IteratedPreference:
    """The programs of one arm, compiled once for all iterations and seeds.

    `loss` and `evaluate` read `frozen`: what the run was given, with `reference` as the configuration
    says and `first`, the policy before the first iteration.

    Args:
      config: budget.
      init: `(key) -> params`, with logical axis names.
      collect: `(params, frozen, key, prompts) -> batch`, jittable: one row of the batch a comparison.
      loss: `(params, batch, frozen) -> Loss` (`objectives.direct_preference` with `frozen["reference"]`).
      evaluate: `(params, frozen, key) -> metrics`.
    """

    def __init__(
        self,
        config: IterationConfig,
        *,
        init: Callable[[PRNGKeyArray], Any],
        collect: Collect,
        loss: Callable[[Any, Any, Any], Loss],
        evaluate: Callable[[Any, Any, PRNGKeyArray], Mapping[str, Array]] | None = None,
    ):
        self.config = config
        self._fit = Supervised(config.training, init=init, loss=loss, evaluate=evaluate)
        self._collect = jax.jit(collect, static_argnums=3)

    def run(self, run: Run, params, frozen: Mapping[str, Any] | None = None) -> Iterates:
        """Train one seed from `params`; each iteration is a stage of the run.

        Args:
          run: folder and key.
          params: the first policy's.
          frozen: further arrays for `collect`, `loss` and `evaluate`.
        """
        config, found = self.config, Iterates([params], [])
        for iteration in range(config.iterations):
            stage, current = run.stage(f"iteration_{iteration + 1}"), found.params[-1]
            reference = params if config.fixed_reference else current
            seen = {**(frozen or {}), "first": params, "reference": reference}
            rows = self._collect(current, seen, stage.stage("responses").key, config.prompts)
            source = ArraySource(rows, config.training.batch_size, run.seed)
            state = self._fit.run(stage, params=current, frozen=seen, source=source)
            found.params.append(state.params)
            found.stages.append(stage)
        return found
