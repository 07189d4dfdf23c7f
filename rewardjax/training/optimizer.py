"""Optax optimizers from a configuration."""

import dataclasses
from typing import Literal

import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An Optax optimizer and its learning-rate schedule.

    Attributes:
      name: the update rule.
      learning_rate: peak of the schedule.
      schedule: shape after the warm-up; all but `"constant"` end at `end_fraction * learning_rate`.
      warmup: share of the run's steps over which the rate grows linearly from 0.
      clip: largest global norm of the gradient; None leaves it.
    """

    name: Literal["adamw", "sgd", "rmsprop", "lion"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0
    end_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate at each of a run's `steps`."""
    peak, end = config.learning_rate, config.learning_rate * config.end_fraction
    warmup = round(config.warmup * steps)
    rest = max(steps - warmup, 1)
    shapes = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, end, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=config.end_fraction),
    }
    if not warmup:
        return shapes[config.schedule]
    ramp = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([ramp, shapes[config.schedule]], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer for a run of `steps` updates."""
    rate, decay = learning_rate(config, steps), config.weight_decay
    rules = {
        "adamw": lambda: optax.adamw(
            rate, config.b1, config.b2, config.epsilon, weight_decay=decay
        ),
        "lion": lambda: optax.lion(rate, config.b1, config.b2, weight_decay=decay),
        "sgd": lambda: optax.sgd(rate, config.b1),
        "rmsprop": lambda: optax.rmsprop(rate, config.b2, config.epsilon),
    }
    clip = optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip)
    return optax.chain(clip, rules[config.name]())
