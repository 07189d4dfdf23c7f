"""A value function trained beside the policy."""

from functools import partial

import jax
import jax.numpy as jnp

from rewardjax.credit import gae
from rewardjax.losses import Loss, value_loss
from rewardjax.models.heads import RewardModel
from rewardjax.recipes.policy_gradient import Learner
from rewardjax.statistics import Mean, masked_std
from rewardjax.training.optimizer import OptimizerConfig, make_optimizer
from rewardjax.training.state import TrainState, update


def critic(
    model: RewardModel,
    optimizer: OptimizerConfig,
    steps: int,
    *,
    discount: float = 1.0,
    lam: float = 0.95,
    clip: float | None = 0.2,
    updates: int = 1,
) -> Learner:
    """A learner that writes `info["values"]` and fits them to lambda-returns (PPO, arXiv:1707.06347).

    Args:
      model: a scorer with one output.
      optimizer: of the value function.
      steps: batches in the run, for the schedule.
      discount: per step.
      lam: of the returns that are fitted.
      clip: largest change of a value that still lowers the loss; None for no limit.
      updates: gradient steps a batch.
    """
    tx = make_optimizer(optimizer, steps * updates)

    def init(key):
        return TrainState.create(model.boxed_init(key), tx)

    def observe(state, traj, key):
        values = model.values(state.params, traj.tokens, traj.valid)
        return state, traj.with_info(values=jnp.where(traj.mask, values, 0.0)), {}

    def loss(params, batch):
        traj, targets = batch
        values = model.values(params, traj.tokens, traj.valid)
        old = traj.info["values"]
        return Loss({"value": value_loss(values, old, targets, traj.mask, clip=clip)}, {})

    def fit(state, traj, rewards, key):
        values = traj.info["values"]
        targets = gae(rewards, traj, discount=discount, lam=lam) + values
        one = partial(_fit_once, tx, loss, (traj, targets))
        (params, opt_state), metrics = jax.lax.scan(
            one, (state.params, state.opt_state), None, length=updates
        )
        metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
        metrics["explained_variance"] = Mean.of(explained_variance(values, targets, traj.mask))
        return state.replace(params=params, opt_state=opt_state), metrics

    return Learner(init, observe, fit)


def _fit_once(tx, loss, batch, carry, _):
    params, opt_state = carry
    params, opt_state, metrics = update(tx, loss, params, opt_state, batch)
    return (params, opt_state), metrics


def explained_variance(values, targets, mask):
    """1 - residual variance / target variance: 1 for a perfect critic, 0 for a constant."""
    spread = masked_std(targets, mask)
    return 1 - (masked_std(targets - values, mask) / jnp.maximum(spread, 1e-8)) ** 2
