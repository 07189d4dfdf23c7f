"""What is measured of a flow policy on a world with a reward: evaluation, cost, pictures."""

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rewardjax.models.flow import FlowConfig, FlowModel
from rewardjax.pictures import grid
from rewardjax.sampling import flow
from rewardjax.tasks.mixture import AskedMode, scatter
from rewardjax.training.loop import LoopConfig
from rewardjax.training.run import Run


@dataclasses.dataclass(frozen=True)
class FlowSettings:
    """How a flow model samples while it learns.

    Attributes:
      steps: of the time grid, `shift`ed as in `flow.time_grid`.
      window: its first steps, which are stochastic; the rest is the ODE's.
      step, log_density: a stochastic step, and the density of where it leads.
      noise: level of the steps' noise.
    """

    steps: int = 10
    window: int = 9
    step: Callable[..., Any] = flow.sde_step  # a `flow.Step` that also takes `noise`
    log_density: flow.LogDensity = flow.mean_log_density
    noise: float = 0.7
    shift: float = 1.0

    def policy(self, model: FlowConfig, group_size: int = 1) -> flow.FlowPolicy:
        """The sampler, with `group_size` samples a condition."""
        return flow.FlowPolicy(
            FlowModel(model).velocity,
            model.event,
            self.steps,
            self.window,
            partial(self.step, noise=self.noise),
            self.log_density,
            group_size,
            self.shift,
        )


@dataclasses.dataclass(frozen=True)
class FlowStudy:
    """A flow policy that is asked for a mode.

    Attributes:
      world: conditions and their reward.
      policy: the sampler that learns; it is evaluated by the ODE.
      steps: of the ODE.
      samples: at each evaluation.
    """

    world: AskedMode
    policy: flow.FlowPolicy
    steps: int
    samples: int

    def drawn(
        self, params, key: PRNGKeyArray
    ) -> tuple[Float[Array, "samples *event"], Int[Array, "samples"]]:
        """Samples by the ODE, and what was asked for."""
        start_key, ask_key = jax.random.split(key)
        start = jax.random.normal(start_key, (self.samples, *self.policy.event))
        asked = self.world.conditions(ask_key, self.samples)
        times = flow.time_grid(self.steps, shift=self.policy.shift)
        return flow.ode_sample(partial(self.policy.velocity, params), start, asked, times), asked

    @cached_property
    def _draw(self):
        return jax.jit(self.drawn)

    def evaluate(self, params, frozen, key: PRNGKeyArray) -> dict[str, Array]:
        """Mean `reward`, and `hits`, the share of samples at the mode that was asked for."""
        x, asked = self.drawn(params, key)
        hits = self.world.mixture.nearest(x) == asked
        return {"reward": jnp.mean(self.world.reward(x, asked)), "hits": jnp.mean(hits)}

    def show(self, stage: Run, params, step: int) -> None:
        """Write some samples in numbers, and scatter plots of four conditions."""
        x, asked = self._draw(params, stage.key)
        reward = self.world.reward(x, asked)
        rows = zip(asked[:8], x[:8], reward[:8], strict=True)
        stage.samples(step, [{"asked": a, "x": p, "reward": r} for a, p, r in rows])
        clouds = [scatter(np.asarray(x)[np.asarray(asked) == mode]) for mode in range(4)]
        stage.picture("samples", grid(clouds, 4, scale=3))

    def results(self, stage: Run, loop: LoopConfig, *, completed: bool) -> dict[str, float]:
        """What the curves come to, at equal updates and at equal evaluations of the network.

        Args:
          stage: has the logs of `evaluate`.
          loop: of the training.
          completed: whether each update also evaluates the completions of all states.

        Returns:
          `reward` and `hits` at the end; `auc`, the mean reward over the evaluations;
          `reward_at_equal_evaluations`, when as many evaluations are spent as without completions.
        """
        curve = stage.history("eval/reward")
        # Training a step costs a forward pass and, as two more, a backward pass.
        costs = [self.policy.evaluations(completed=x) for x in (False, completed)]
        cheapest, own = (3 * self.policy.window + cost for cost in costs)
        affordable = int(loop.steps * cheapest / own // loop.evaluate_every)
        return {
            "reward": float(curve[-1]),
            "auc": float(np.mean(curve)),
            "reward_at_equal_evaluations": float(curve[max(affordable, 1) - 1]),
            "hits": float(stage.history("eval/hits")[-1]),
        }
