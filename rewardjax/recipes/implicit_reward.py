"""A process reward model without step labels: log-ratios fitted to outcomes (arXiv:2412.01981)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.verification import ranking_auc
from rewardjax.losses import Loss, binary_cross_entropy, log_ratio
from rewardjax.models.heads import like
from rewardjax.models.language_model import LanguageModel
from rewardjax.recipes.policy_gradient import Learner
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.verified_task import VerifiedTask
from rewardjax.statistics import Mean
from rewardjax.training.optimizer import OptimizerConfig, make_optimizer
from rewardjax.training.run import Run
from rewardjax.training.state import Metrics, TrainState, in_cuts, update
from rewardjax.trajectory import Trajectory


def outcome_likelihood(model: LanguageModel, beta: float):
    """Cross-entropy of outcomes under `sigmoid(beta * sum_t q_t)` (PRIME, arXiv:2502.01456, Eq. 5).

    `q_t` is the log-ratio of the model to a reference at each acted token. A batch is a dict of
    `tokens`, `valid`, `mask`, `reference_logprobs`, each `[batch, time]`, and `correct` `[batch]` in
    [0, 1]; rows with nothing acted do not count.
    """

    def loss(params, batch, frozen=None):
        mask = batch["mask"]
        logprobs, _ = model.score(params, batch["tokens"], batch["valid"].astype(jnp.int32))
        scores = beta * log_ratio(logprobs, batch["reference_logprobs"], mask)
        values = binary_cross_entropy(scores, batch["correct"].astype(jnp.float32))
        return Loss({"outcome": Mean.of(values, jnp.any(mask, axis=1))}, {})

    return loss


def labelled(traj: Trajectory, correct: Float[Array, "batch"]) -> dict[str, Array]:
    """The batch of `outcome_likelihood` from rows with `info["reference_logprobs"]`."""
    return {
        "tokens": traj.tokens,
        "valid": traj.valid,
        "mask": traj.mask,
        "reference_logprobs": traj.info["reference_logprobs"],
        "correct": correct,
    }


def fitted_to_rollouts(
    config: SupervisedConfig, task: VerifiedTask, group_size: int, prompts: int, beta: float
):
    """A process reward model fitted once: `(run, params) -> parameters`, starting from the policy's.

    It learns from the policy's responses to `prompts` prompts, `group_size` each; the reference is
    the policy too.
    """
    model, policy = task.policy.model, dataclasses.replace(task.policy, group_size=group_size)
    program = Supervised(config, init=model.boxed_init, loss=outcome_likelihood(model, beta))

    @jax.jit
    def judged(params, key):
        ask, act = jax.random.split(key)
        traj = policy.rollout(params, task.world.prompts(ask, prompts), act)
        return labelled(task.reference_logprobs(params, traj), task.world.verify(traj))

    def fit(run: Run, params):
        pool = jax.tree.map(np.asarray, judged(params, run.key))
        source = ArraySource(pool, config.batch_size, run.seed)
        return program.run(run, params=params, source=source).params

    return fit


def implicit_process_reward(
    model: LanguageModel,
    optimizer: OptimizerConfig,
    steps: int,
    *,
    beta: float,
    judge: Callable[[Trajectory, Float[Array, "batch time"]], Metrics] | None = None,
    frozen: bool = False,
    micro_batches: int = 1,
) -> Learner:
    """A learner that writes `info["process_rewards"]`, the log-ratios q_t, and fits them to outcomes.

    The rewards are those of the model before it learns from the same batch (the default of the
    authors' code), unscaled by beta. It starts from given parameters: `run(..., starts={name: params})`.
    It logs `auc`, how often the sum of q_t ranks a right response of the batch above a wrong one.

    Args:
      model: the language model whose log-probabilities are compared with `info["reference_logprobs"]`.
      optimizer: of the process reward model.
      steps: batches in the run, for the schedule.
      beta: of `outcome_likelihood`.
      judge: `(traj, process_rewards) -> metrics` on each fresh batch.
      frozen: keep the starting parameters.
      micro_batches: cuts of a batch, scored one at a time, whose gradients are added up.
    """
    tx = make_optimizer(optimizer, steps)
    loss = outcome_likelihood(model, beta)

    def init(key: PRNGKeyArray, start=None):
        boxed = model.boxed_init(key)
        return TrainState.create(boxed if start is None else like(boxed, start), tx)

    def observe(state, traj, key):
        def score(batch):
            return model.score(state.params, *batch)[0]

        logprobs = in_cuts(score, (traj.tokens, traj.valid.astype(jnp.int32)), micro_batches)
        ratios = jnp.where(traj.mask, logprobs - traj.info["reference_logprobs"], 0.0)
        ratios = jax.lax.stop_gradient(ratios)
        metrics = {} if judge is None else judge(traj, ratios)
        return state, traj.with_info(process_rewards=ratios), metrics

    def learn(state, traj, rewards, key):
        correct = jnp.sum(rewards, axis=1)
        sums = jnp.sum(traj.info["process_rewards"] * traj.mask, axis=1)
        acted = jnp.any(traj.mask, axis=1)
        metrics = {"auc": ranking_auc(sums, correct > 0.5, acted)}
        if frozen:
            return state, metrics
        params, opt_state, found = update(
            tx, loss, state.params, state.opt_state, labelled(traj, correct), micro_batches
        )
        return state.replace(params=params, opt_state=opt_state), metrics | found

    return Learner(init, observe, learn)
