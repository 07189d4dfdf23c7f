"""Gradient descent on a loss over batches: language modelling, reward models, preference losses."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from rewardjax.losses import Loss
from rewardjax.training.loop import Loop, LoopConfig
from rewardjax.training.optimizer import OptimizerConfig, make_optimizer
from rewardjax.training.run import Run
from rewardjax.training.sharding import MeshConfig, initial_state, make_mesh
from rewardjax.training.state import Metrics, TrainState, assembled, update


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
    """Budget and cadence of supervised training.

    Attributes:
      batch_size: rows (or pairs) a step.
      micro_batches: cuts of a batch whose gradients are added up.
      optimizer: the update rule.
      loop: number of updates, and cadences.
      mesh: the devices.
    """

    batch_size: int = 64
    micro_batches: int = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig()
    mesh: MeshConfig = MeshConfig()


class Supervised:
    """Supervised training, compiled once and run for each seed.

    Args:
      config: budget and cadence.
      init: `(key) -> params`, with logical axis names.
      loss: `(params, batch, frozen) -> Loss`.
      assemble: `(params, frozen) -> params`, what loss and evaluation see of the trained parameters, where
        these are only a part (`Lora.merge`).
      batches: `(key, n) -> batch` where data are made on the device; else they come from the run's source.
      evaluate: `(params, frozen, key) -> metrics`.
    """

    def __init__(
        self,
        config: SupervisedConfig,
        *,
        init: Callable[[PRNGKeyArray], Any],
        loss: Callable[[Any, Any, Any], Loss],
        assemble: Callable[[Any, Any], Any] | None = None,
        batches: Callable[[PRNGKeyArray, int], Any] | None = None,
        evaluate=None,
    ):
        self.config, self.init, self.loss, self.batches = config, init, loss, batches
        self.assemble = (lambda params, frozen: params) if assemble is None else assemble
        if evaluate is not None and assemble is not None:
            evaluate = assembled(evaluate, assemble)
        self.tx = make_optimizer(config.optimizer, config.loop.steps)
        self.mesh = make_mesh(config.mesh)
        self.loop = Loop(config.loop, self.step, evaluate, self.mesh, watch)

    def start(self, key: PRNGKeyArray, params=None) -> TrainState:
        """The state before the first step: from `params`, or from fresh ones."""
        return initial_state(self.init, self.tx, self.mesh, key, params)

    def run(self, run: Run, *, params=None, frozen=None, source=None) -> TrainState:
        """Train one seed; `params` are where it starts."""
        return self.loop.run(run, self.start(run.key, params), source=source, frozen=frozen)

    def step(self, state: TrainState, batch, frozen, key) -> tuple[TrainState, Metrics]:
        """One update."""
        if self.batches is not None:
            batch = self.batches(key, self.config.batch_size)
        params, opt_state, metrics = update(
            self.tx,
            lambda params, cut: self.loss(self.assemble(params, frozen), cut, frozen),
            state.params,
            state.opt_state,
            batch,
            self.config.micro_batches,
        )
        return state.replace(params=params, opt_state=opt_state), metrics


def watch(values: Mapping[str, np.ndarray]) -> list[str]:
    """Warnings from the metrics of consecutive steps."""
    if np.all(values["loss"] == 0) and np.all(values["grad_norm"] == 0):
        return ["loss and gradient are exactly 0: is every mask empty?"]
    return []
