"""A value function trained beside the policy."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax.credit import gae
from rewardjax.losses import Loss, value_loss
from rewardjax.models.heads import RewardModel
from rewardjax.recipes.policy_gradient import Learner
from rewardjax.statistics import Mean, masked_std
from rewardjax.training.optimizer import OptimizerConfig, make_optimizer
from rewardjax.training.state import TrainState, in_cuts, update
from rewardjax.trajectory import Trajectory


@runtime_checkable
class Model(Protocol):
    """What a value function needs of its model."""

    def boxed_init(self, key: PRNGKeyArray) -> Any:
        """Fresh parameters with logical axis names."""


def token_values(model: RewardModel) -> Callable[[Any, Trajectory], Float[Array, "batch time"]]:
    """A scorer's values of the states in which a language model's tokens are chosen."""
    return lambda params, traj: model.values(params, traj.tokens, traj.valid)


def critic(
    model: Model,
    optimizer: OptimizerConfig,
    steps: int,
    *,
    values: Callable[[Any, Trajectory], Float[Array, "batch time"]] | None = None,
    bootstrap: Callable[[Any, Trajectory], Float[Array, "batch"]] | None = None,
    discount: float = 1.0,
    lam: float = 0.95,
    clip: float | None = 0.2,
    updates: int = 1,
    rows: int | None = None,
    micro_batches: int = 1,
) -> Learner:
    """A learner that writes `info["values"]` and fits them to lambda-returns (PPO, arXiv:1707.06347).

    Args:
      model: gives the parameters; a `RewardModel` with one output where there are no `values`.
      optimizer: of the value function.
      steps: batches in the run, for the schedule.
      values: `(params, traj) -> [batch, time]`, of the state in which each action is taken;
        `token_values(model)` without it.
      bootstrap: `(params, traj) -> [batch]`, what is expected after each row's last acted step,
        written to `info["bootstrap"]`; without it episodes end there.
      discount: per step.
      lam: of the returns that are fitted.
      clip: largest change of a value that still lowers the loss; None for no limit.
      updates: gradient steps a batch.
      rows: trajectories a gradient step, drawn afresh for each; all of the batch without it.
      micro_batches: cuts of these whose gradients are added up, and of the batch that is valued.

    Raises:
      TypeError: there are no `values`, and the model is not a `RewardModel`.
    """
    tx = make_optimizer(optimizer, steps * updates)
    if values is None:
        if not isinstance(model, RewardModel):
            raise TypeError(f"values: expected a function for a model of {type(model).__name__}")
        values = token_values(model)

    def init(key):
        return TrainState.create(model.boxed_init(key), tx)

    def valued(params, traj):
        found = {"values": jnp.where(traj.mask, values(params, traj), 0.0)}
        if bootstrap is not None:
            found["bootstrap"] = bootstrap(params, traj)
        return found

    def observe(state, traj, key):
        found = in_cuts(partial(valued, state.params), traj, micro_batches)
        return state, traj.with_info(**found), {}

    def loss(params, batch):
        traj, targets = batch
        old = traj.info["values"]
        error = value_loss(values(params, traj), old, targets, traj.mask, clip=clip)
        return Loss({"value": error}, {})

    def fit(state, traj, rewards, key):
        before = traj.info["values"]
        targets = gae(rewards, traj, discount=discount, lam=lam) + before
        one = partial(_fit_once, tx, loss, (traj, targets), rows, micro_batches)
        (params, opt_state), metrics = jax.lax.scan(
            one, (state.params, state.opt_state), jax.random.split(key, updates)
        )
        metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
        metrics["explained_variance"] = Mean.of(explained_variance(before, targets, traj.mask))
        return state.replace(params=params, opt_state=opt_state), metrics

    return Learner(init, observe, fit)


def _fit_once(tx, loss, batch, rows, micro_batches, carry, key):
    if rows is not None:
        drawn = jax.random.permutation(key, batch[0].mask.shape[0])[:rows]
        batch = jax.tree.map(lambda x: x[drawn], batch)
    params, opt_state = carry
    params, opt_state, metrics = update(tx, loss, params, opt_state, batch, micro_batches)
    return (params, opt_state), metrics


def explained_variance(values, targets, mask):
    """1 - residual variance / target variance: 1 for a perfect critic, 0 for a constant."""
    spread = masked_std(targets, mask)
    return 1 - (masked_std(targets - values, mask) / jnp.maximum(spread, 1e-8)) ** 2
