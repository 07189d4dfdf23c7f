"""A reward model learned beside a control policy, from comparisons of steps by ordered factors."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rewardjax.losses import Loss, bradley_terry
from rewardjax.models.actor_critic import VectorScorer
from rewardjax.recipes.policy_gradient import Learner
from rewardjax.rewards import RunningMoments
from rewardjax.rewards.lexicographic import lexicographic_compare, lexicographic_margins
from rewardjax.sampling.control import ControlPolicy
from rewardjax.statistics import Mean
from rewardjax.training.optimizer import OptimizerConfig, make_optimizer
from rewardjax.training.state import TrainState, update
from rewardjax.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """How steps are compared, and a reward model fitted to it.

    Attributes:
      multiples: the factors' margins, in standard deviations over all steps so far (those of a
        policy that has become consistent hardly vary).
      optimizer: of the model.
      group: steps that are compared with each other.
      groups: gradient steps a batch; all their steps together are at most those of the batch.
    """

    multiples: tuple[float, ...]
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-2)
    group: int = 16
    groups: int = 16


def lexicographic_reward(
    policy: ControlPolicy,
    config: ComparisonConfig,
    steps: int,
    *,
    factors: Callable[[Trajectory], Float[Array, "batch time factors"]],
    signs: Sequence[int],
    order: Sequence[int] | None = None,
) -> Learner:
    """A learner that is fitted to a batch and then writes its `info["learned_reward"]` (HERON).

    Each gradient step draws a group of steps and compares all of its pairs (arXiv:2309.02632); pairs
    that tie, or of which one was not acted, say nothing.

    Args:
      policy: the model reads its observations and actions, side by side, in layers as wide as its own.
      config: margins and budget.
      steps: batches in the run, for the schedule.
      factors: of each step, as many as `config.multiples`.
      signs: 1 for a factor whose higher values are better, -1 for a cost.
      order: the factors' numbers, the most important first; as they come if None.
    """
    ranked = list(range(len(signs)) if order is None else order)
    signs = [signs[i] for i in ranked]
    multiples = [config.multiples[i] for i in ranked]
    group, groups = config.group, config.groups
    environment = policy.environment
    inputs = environment.observation_size + environment.action_size
    model = VectorScorer(inputs, policy.widths)
    tx = make_optimizer(config.optimizer, steps * groups)
    first, second = np.triu_indices(group, 1)

    def init(key):
        moments = jax.tree.map(lambda x: jnp.repeat(x, len(signs)), RunningMoments.init())
        return TrainState.create(model.boxed_init(key), tx), moments

    def loss(params, batch):
        inputs, values, acted, margins = batch
        label, level = lexicographic_compare(values[first], values[second], signs, margins)
        scores = model.score(params, inputs)
        lead = label * (scores[first] - scores[second])
        compared = acted[first] & acted[second]
        decided = compared & (label != 0)
        metrics = {f"level_{i + 1}": Mean.of(level == i, compared) for i in range(len(signs))}
        metrics["accuracy"] = Mean.of(lead > 0, decided)
        return Loss({"preference": Mean.of(bradley_terry(lead), decided)}, metrics)

    def observe(state, traj, key):
        fitted, moments = state
        inputs = jnp.concatenate([traj.observations, traj.actions], axis=-1)
        values = factors(traj)[..., ranked]
        moments, std = jax.vmap(_seen, (0, -1, None))(moments, values, traj.mask)
        margins = lexicographic_margins(std, multiples)
        rows = [x.reshape(traj.mask.size, *x.shape[2:]) for x in (inputs, values, traj.mask)]

        def fit(carry, drawn):
            batch = (*(x[drawn] for x in rows), margins)
            params, opt_state, metrics = update(tx, loss, carry[0], carry[1], batch)
            return (params, opt_state), metrics

        drawn = jax.random.permutation(key, traj.mask.size)[: groups * group]
        (params, opt_state), metrics = jax.lax.scan(
            fit, (fitted.params, fitted.opt_state), drawn.reshape(groups, group)
        )
        metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
        fitted = fitted.replace(params=params, opt_state=opt_state)
        return (
            (fitted, moments),
            traj.with_info(learned_reward=model.score(params, inputs)),
            metrics,
        )

    return Learner(init, observe)


def win_rate(
    values: Float[Array, "batch factors"],
    rivals: Float[Array, "batch factors"],
    signs: Sequence[int],
    multiples: Sequence[float],
) -> Float[Array, ""]:
    """Share of rows in which `values` are better than `rivals`, a tie being half of one.

    The margins are `multiples` of the standard deviations over the rivals.
    """
    margins = lexicographic_margins(jnp.std(rivals, axis=0), multiples)
    wins, _ = lexicographic_compare(values, rivals, signs, margins)
    return (1 + jnp.mean(wins)) / 2


def _seen(moments: RunningMoments, values: Array, mask: Array) -> tuple[RunningMoments, Array]:
    moments = moments.update(values, mask)
    return moments, moments.std
