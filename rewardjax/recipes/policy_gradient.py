"""Sample, reward, credit, update: the policy-gradient loop with its functions as arguments."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from rewardjax.losses import Loss
from rewardjax.rewards import Reward
from rewardjax.statistics import Mean, masked_mean, masked_std
from rewardjax.training.loop import HostStep, Loop, LoopConfig
from rewardjax.training.optimizer import OptimizerConfig, make_optimizer
from rewardjax.training.run import Run
from rewardjax.training.sharding import MeshConfig, initial_state, make_mesh
from rewardjax.training.state import Metrics, TrainState, assembled, in_cuts, update
from rewardjax.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class PolicyGradientConfig:
    """Budget and cadence of policy-gradient training.

    Attributes:
      prompts: prompts a step.
      epochs: passes over the sampled batch.
      minibatches: optimizer steps a pass.
      micro_batches: cuts of each minibatch whose gradients are added up.
      rollout_cuts: parts of the prompts, sampled one after the other.
      batch_cuts: cuts of the sampled batch, for what reads all of it beside the policy: frozen models that
        annotate it, and models that are trained on it where they take this number.
      optimizer: of the policy.
      loop: number of sampled batches, and cadences.
      mesh: the devices.
    """

    prompts: int = 16
    epochs: int = 1
    minibatches: int = 1
    micro_batches: int = 1
    rollout_cuts: int = 1
    batch_cuts: int = 1
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
    loop: LoopConfig = LoopConfig()
    mesh: MeshConfig = MeshConfig()


class Learner(NamedTuple):
    """A model trained beside the policy, as pure functions of its own state.

    Attributes:
      init: `(key) -> state`, with logical axis names on its parameters if it has them; `(key, start) ->
        state` for one that can begin at given parameters.
      observe: `(state, traj, key) -> (state, traj, metrics)`, before rewards: writes on the
        trajectory what rewards and credit read (values, process rewards, running statistics).
      update: `(state, traj, rewards, key) -> (state, metrics)`, after rewards.
    """

    init: Callable[[PRNGKeyArray], Any]
    observe: Callable[[Any, Trajectory, PRNGKeyArray], tuple[Any, Trajectory, Metrics]]
    update: Callable[[Any, Trajectory, Any, PRNGKeyArray], tuple[Any, Metrics]] = (
        lambda state, traj, rewards, key: (state, {})
    )


# Writes on a trajectory what frozen parameters say of it: (frozen, traj) -> traj.
Annotate = Callable[[Any, Trajectory], Trajectory]


class PolicyGradient:
    """Policy-gradient training, compiled once and run for each seed.

    Every function is pure and jittable; together they are one program:

        batch -> rollout -> annotate -> learners.observe -> reward -> credit -> learners.update -> loss

    With `on_host`, which runs Python between observing and the reward, they are two. With `overlap` besides,
    a batch is sampled while the host is at work on the one before, by the parameters that it has yet to
    change: one step off policy. A ratio loss stays exact, since the trajectory holds the log-probabilities
    under the parameters that sampled it. The first of the updates between two cadences is as without.

    Args:
      config: budget and cadence.
      init: `(key) -> params`, with logical axis names (`LanguageModel.boxed_init`).
      rollout: `(params, batch, key) -> Trajectory`.
      loss: `(params, traj, advantages) -> Loss` (`scored` makes one from a policy's `score`).
      reward: `traj -> Reward`.
      credit: `(rewards, traj) -> advantages`, both `[batch, time]`.
      prompts: `(key, n) -> batch` where prompts are made on the device; else they come from the run's source.
      assemble: `(params, frozen) -> params`, what rollout, loss and evaluation see of the trained parameters,
        where these are only a part (`Lora.merge`).
      annotate: reads frozen parameters (a reference policy, a reward model), before the learners; row by row
        where `batch_cuts` cuts the batch.
      learners: models trained beside the policy, in the order in which they observe.
      measure: `traj -> metrics`, logged at each step beside the usual ones.
      select: `(traj, key) -> traj`, after measuring: the rows from which learners and policy learn.
      adjacent: rows that stay side by side when a batch is shuffled and cut: 2 where a loss reads pairs.
      on_host: `traj -> {name: [batch] array}`, on a trajectory of NumPy arrays: columns for `info` that only
        the host can compute (a query's result, a program's exit). On one process.
      overlap: sample the next batch before the host is done with this one. Learners observe it before they
        have been updated on this one.
      evaluate: `(params, frozen, key) -> metrics`; compiled, but not with `on_host`.

    Raises:
      ValueError: `overlap` without `on_host`, or with a single update in a program call; `rollout_cuts` does
        not divide `prompts`.
    """

    def __init__(
        self,
        config: PolicyGradientConfig,
        *,
        init: Callable[[PRNGKeyArray], Any],
        rollout: Callable[[Any, Any, PRNGKeyArray], Trajectory],
        loss: Callable[[Any, Trajectory, Any], Loss],
        reward: Callable[[Trajectory], Reward],
        credit: Callable[[Any, Trajectory], Any],
        prompts: Callable[[PRNGKeyArray, int], Any] | None = None,
        assemble: Callable[[Any, Any], Any] | None = None,
        annotate: Annotate | None = None,
        learners: Mapping[str, Learner] | None = None,
        measure: Callable[[Trajectory], Metrics] | None = None,
        select: Callable[[Trajectory, PRNGKeyArray], Trajectory] | None = None,
        adjacent: int = 1,
        on_host: Callable[[Trajectory], Mapping[str, np.ndarray]] | None = None,
        overlap: bool = False,
        evaluate=None,
    ):
        self.config, self.init, self.rollout, self.loss = config, init, rollout, loss
        self.reward, self.credit, self.prompts, self.annotate = reward, credit, prompts, annotate
        self.learners, self.measure = dict(learners or {}), measure
        self.select, self.adjacent = select, adjacent
        self.assemble = (lambda params, frozen: params) if assemble is None else assemble
        updates = config.loop.steps * config.epochs * config.minibatches
        self.tx = make_optimizer(config.optimizer, updates)
        self.mesh = make_mesh(config.mesh)
        self.on_host = on_host
        if overlap and (on_host is None or config.loop.stride == 1):
            raise ValueError(
                "overlap: expected on_host and two or more updates between all cadences, found"
                f" on_host={on_host} and {config.loop}"
            )
        if config.prompts % config.rollout_cuts:
            raise ValueError(
                f"rollout_cuts: expected a divisor of prompts={config.prompts}, found"
                f" {config.rollout_cuts}"
            )
        self._act = jax.jit(self.act, donate_argnums=0)
        self._learn = jax.jit(self._rewarded, donate_argnums=0)
        if evaluate is not None and assemble is not None:
            evaluate = assembled(evaluate, assemble)
        step = self.step if on_host is None else HostStep(self._begin, self._finish, int(overlap))
        self.loop = Loop(config.loop, step, evaluate, self.mesh, watch)

    def start(self, key: PRNGKeyArray, params=None, starts=None) -> TrainState:
        """The state before the first step: from `params` and `starts`, or from fresh ones."""
        learners = {name: learner.init for name, learner in self.learners.items()}
        return initial_state(self.init, self.tx, self.mesh, key, params, learners, starts)

    def run(self, run: Run, *, params=None, starts=None, frozen=None, source=None) -> TrainState:
        """Train one seed; the policy starts from `params`, learners from `starts` by their names."""
        state = self.start(run.key, params, starts)
        return self.loop.run(run, state, source=source, frozen=frozen)

    def step(self, state: TrainState, batch, frozen, key) -> tuple[TrainState, Metrics]:
        """One sampled batch and its updates."""
        act_key, learn_key = jax.random.split(key)
        state, traj, metrics = self.act(state, batch, frozen, act_key)
        state, more = self._rewarded(state, traj, frozen, learn_key)
        return state, joined(metrics, more)

    def _begin(self, state: TrainState, batch, frozen, key) -> tuple[TrainState, Any]:
        """`step` up to the host's part."""
        act_key, _ = jax.random.split(key)
        state, traj, metrics = self._act(state, batch, frozen, act_key)
        return state, (traj, metrics)

    def _finish(self, state: TrainState, begun, frozen, key) -> tuple[TrainState, Metrics]:
        """`step` from the host's part on."""
        traj, metrics = begun
        _, learn_key = jax.random.split(key)
        traj = traj.with_info(**self.on_host(jax.device_get(traj)))
        state, more = self._learn(state, traj, frozen, learn_key)
        return state, joined(metrics, more)

    def _rewarded(self, state, traj, frozen, key) -> tuple[TrainState, Metrics]:
        return self.learn(state, traj, self.reward(traj), frozen, key)

    def act(self, state, batch, frozen, key) -> tuple[TrainState, Trajectory, Metrics]:
        """Sample a batch and write on it all that rewards and credit will read."""
        prompt_key, rollout_key, observe_key = jax.random.split(key, 3)
        if self.prompts is not None:
            batch = self.prompts(prompt_key, self.config.prompts)
        traj = self._sample(self.assemble(state.params, frozen), batch, rollout_key)
        if self.annotate is not None:
            traj = in_cuts(partial(self.annotate, frozen), traj, self.config.batch_cuts)
        metrics: Metrics = {} if self.measure is None else self.measure(traj)
        if self.select is not None:
            traj = self.select(traj, jax.random.fold_in(observe_key, len(self.learners)))
        states = dict(state.learners)
        for i, (name, learner) in enumerate(self.learners.items()):
            own_key = jax.random.fold_in(observe_key, i)
            states[name], traj, found = learner.observe(states[name], traj, own_key)
            metrics |= {f"{name}/{k}": v for k, v in found.items()}
        return state.replace(learners=states), traj, metrics

    def _sample(self, params, batch, key) -> Trajectory:
        cuts = self.config.rollout_cuts
        if cuts == 1:
            return self.rollout(params, batch, key)

        def one(part):
            prompts, key = part
            return self.rollout(params, prompts, key[0])

        return in_cuts(one, (batch, jax.random.split(key, cuts)), cuts)

    def learn(self, state, traj, reward: Reward, frozen, key) -> tuple[TrainState, Metrics]:
        """Update learners and policy on a rewarded batch."""
        traj = traj.replace(mask=traj.mask & reward.applicable[:, None])
        advantages = self.credit(reward.steps, traj)
        metrics = rollout_metrics(traj, reward, advantages)
        states = dict(state.learners)
        for i, (name, learner) in enumerate(self.learners.items()):
            own_key = jax.random.fold_in(key, i)
            states[name], found = learner.update(states[name], traj, reward.steps, own_key)
            metrics |= {f"{name}/{k}": v for k, v in found.items()}
        state, more = self._update_policy(state, traj, advantages, frozen, key)
        return state.replace(learners=states), joined(metrics, more)

    def _update_policy(self, state, traj, advantages, frozen, key):
        c = self.config
        rows = advantages.shape[0]
        if rows % (c.minibatches * c.micro_batches * self.adjacent):
            together = f" x {self.adjacent} adjacent rows" if self.adjacent > 1 else ""
            raise ValueError(
                f"minibatches={c.minibatches} x micro_batches={c.micro_batches}{together} does not"
                f" divide the batch of {rows} trajectories"
            )

        def loss(params, batch):
            return self.loss(self.assemble(params, frozen), *batch)

        def one(carry, batch):
            params, opt_state = carry
            params, opt_state, metrics = update(
                self.tx, loss, params, opt_state, batch, c.micro_batches
            )
            return (params, opt_state), metrics

        carry, data = (state.params, state.opt_state), (traj, advantages)
        if c.epochs * c.minibatches == 1:
            carry, metrics = one(carry, data)
        else:
            keys = jax.random.split(key, c.epochs)
            units = rows // self.adjacent
            orders = jnp.concatenate([jax.random.permutation(k, units) for k in keys])
            orders = orders[:, None] * self.adjacent + jnp.arange(self.adjacent)
            orders = orders.reshape(c.epochs * c.minibatches, -1)
            carry, stacked = jax.lax.scan(
                lambda carry, order: one(carry, jax.tree.map(lambda x: x[order], data)),
                carry,
                orders,
            )
            metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), stacked)
        return state.replace(params=carry[0], opt_state=carry[1]), metrics


def scored(score, loss) -> Callable[[Any, Trajectory, Any], Loss]:
    """A recipe's loss from a policy's `score(params, traj)` and a `loss(scores, traj, advantages)`."""

    def composed(params, traj, advantages):
        return loss(score(params, traj), traj, advantages)

    return composed


def with_reference(score) -> Annotate:
    """Writes `info["reference_logprobs"]`: how `score` scores a trajectory under the frozen parameters."""

    def annotate(frozen, traj):
        return traj.with_info(reference_logprobs=score(frozen, traj).logprobs)

    return annotate


def joined(metrics: Metrics, more: Metrics) -> Metrics:
    """Both.

    Raises:
      ValueError: they share a name, so that one would hide the other.
    """
    if shared := sorted(metrics.keys() & more.keys()):
        raise ValueError(f"metrics: expected different names, found {', '.join(shared)} twice")
    return metrics | more


def rollout_metrics(traj: Trajectory, reward: Reward, advantages) -> Metrics:
    """What every policy-gradient run logs of a batch."""
    acted = jnp.any(traj.mask, axis=1)
    metrics = {
        "reward": Mean.of(jnp.sum(reward.steps * traj.mask, axis=1), acted),
        "response_length": Mean.of(traj.lengths, acted),
        "reached_last_step": Mean.of(traj.mask[:, -1], acted),
        "applicable": Mean.of(reward.applicable),
        "advantage_std": Mean.of(masked_std(advantages, traj.mask)),
        "advantage_mean": Mean.of(masked_mean(advantages, traj.mask)),
        "zero_advantage": Mean.of(jnp.all(advantages == 0, axis=1), acted),
    }
    parts = {f"reward/{name}": Mean.of(x, reward.applicable) for name, x in reward.parts.items()}
    return metrics | parts


def watch(values: Mapping[str, np.ndarray]) -> list[str]:
    """Warnings that save a day, from the metrics of consecutive steps.

    Args:
      values: each metric over the steps of one program call.
    """
    found = []
    if np.all(values["response_length"] == 0):
        found.append("no step has an action: is the mask empty, or no reward applicable?")
    elif np.all(values["advantage_std"] == 0) and np.all(values["advantage_mean"] == 0):
        found.append("every advantage is 0: the reward is constant in every group")
    if np.all(values["reached_last_step"] == 1):
        found.append("every response fills its window: all may be cut off before they end")
    return found
