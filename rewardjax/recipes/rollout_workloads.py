"""The device programs of reinforcement at full size; `recipes/workloads.py` has those that train on data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rewardjax import losses
from rewardjax.compilation.layout import (
    abstract,
    cache_of,
    key_shape,
    rows_of,
    sampling_params,
    weights_of,
)
from rewardjax.compilation.program import Program, Workload
from rewardjax.losses import Loss, PolicyLoss
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import check_length
from rewardjax.recipes.implicit_reward import implicit_process_reward
from rewardjax.recipes.policy_gradient import Learner, PolicyGradientConfig, scored
from rewardjax.recipes.workloads import sizes_of, state_of, training
from rewardjax.sampling.generate import decode, prefill, sample_token
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.trajectory import Prompts, Trajectory

DECODED = (
    32  # tokens of each slot in a call of `decode`: a cache changes its layout at a call's ends
)
CLIPPED = losses.policy_loss(surrogate=losses.clipped(0.2))
PENALISED = losses.policy_loss(
    surrogate=losses.clipped(0.2), regularisers=(losses.kl_to_reference(0.001),)
)
Held = Callable[[Mesh], dict[str, Any]]


def trajectory_of(mesh: Mesh, rows: int, time: int, **info: Any) -> Trajectory:
    """A batch of token sequences with `info["reference_logprobs"]` and these columns."""
    flags, numbers = rows_of(mesh, bool, rows, time), rows_of(mesh, jnp.float32, rows, time)
    tokens = rows_of(mesh, jnp.int32, rows, time)
    return Trajectory(tokens, flags, flags, numbers, info={"reference_logprobs": numbers, **info})


def in_one_step(workloads: list[Workload], *held: Held) -> list[Workload]:
    """Programs of one step, for each of which all of `held` is in memory."""

    def together(mesh: Mesh) -> dict[str, Any]:
        return {name: tree for part in held for name, tree in part(mesh).items()}

    return [dataclasses.replace(it, held=together) for it in workloads]


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """How a language model is trained by reinforcement at full size.

    A critic and a reward model have the policy's architecture, with one output.

    Attributes:
      model: the language model.
      rl: prompts a step, cuts of a batch, optimizer.
      group_size: responses a prompt.
      prompt, response: longest of each, in tokens.
      loss: of the policy; clipped without it, with a KL penalty where there is a reference.
      reference: whether frozen parameters of the policy's size score the responses.
      critic: the optimizer of one that is trained beside the policy.
      critic_updates: its gradient steps a batch.
      reward_model: whether a frozen one scores the responses.
    """

    model: LanguageModel
    rl: PolicyGradientConfig
    group_size: int
    prompt: int
    response: int
    loss: PolicyLoss | None = None
    reference: bool = True
    critic: OptimizerConfig | None = None
    critic_updates: int = 1
    reward_model: bool = False

    @classmethod
    def of(cls, policy: LanguagePolicy, rl: PolicyGradientConfig, group_size: int) -> "Rollouts":
        """Those of a policy whose prompts have `prompt_columns` tokens."""
        return cls(policy.model, rl, group_size, policy.prompt_columns, policy.max_new)

    @property
    def rows(self) -> int:
        """Responses a step."""
        return self.rl.prompts * self.group_size

    @property
    def length(self) -> int:
        """Tokens of a prompt and its response."""
        return self.prompt + self.response

    @property
    def policy(self) -> LanguagePolicy:
        """The policy; no token ends its responses."""
        return LanguagePolicy(
            self.model, self.response, (), self.group_size, prompt_columns=self.prompt
        )

    @property
    def scorer(self) -> RewardModel:
        """The critic's and the reward model's architecture."""
        return RewardModel(self.model.config)

    def held(self, mesh: Mesh) -> dict[str, Any]:
        """What stays in memory through a step, by name."""
        found = {"policy": state_of(mesh, self.model.boxed_init, self.rl.optimizer)}
        if self.reference:
            found["reference"] = weights_of(mesh, self.model)
        if self.reward_model:
            found["reward model"] = weights_of(mesh, self.scorer)
        if self.critic is not None:
            found["critic"] = state_of(mesh, self.scorer.boxed_init, self.critic)
        return found

    def workloads(self) -> list[Workload]:
        """Rollout and its parts, prefill and decode; update; `score`, `reward`, `critic` with such models.

        A rollout writes full-length responses to a part of the prompts: these are its rows, and a prefill's.

        Raises:
          ValueError: a prompt and its response are longer than the model's context.
        """
        check_length(self.model.config, self.length)
        rl, part = self.rl, self.rows // self.rl.batch_cuts
        prompts, slots = rl.prompts // rl.rollout_cuts, self.rows // rl.rollout_cuts
        cut = self.rows // (rl.minibatches * rl.micro_batches)
        found = [
            ("rollout", prompts, self._rollout, rl.rollout_cuts),
            ("prefill", prompts, self._prefill, rl.rollout_cuts),
            ("decode", slots, self._decode, rl.rollout_cuts * -(-self.response // DECODED)),
            ("update", cut, self._update, rl.epochs * rl.minibatches),
        ]
        if self.reference:
            found.append(("score", part, self._score, rl.batch_cuts))
        if self.reward_model:
            found.append(("reward", part, self._reward, rl.batch_cuts))
        if self.critic is not None:
            found.append(("critic", part, self._learn_values, self.critic_updates))
        sizes = sizes_of(self.model.config)
        return in_one_step([Workload(*it, sizes) for it in found], self.held)

    def _image(self, mesh: Mesh, rows: int) -> dict[str, Any]:
        vision = getattr(self.model, "vision", None)
        if vision is None:
            return {}
        shape = (vision.height, vision.width, vision.channels)
        return {"image": rows_of(mesh, jnp.float32, rows, *shape)}

    def _prompts(self, mesh: Mesh, rows: int) -> Prompts:
        shape = (rows, self.prompt)
        tokens, valid = rows_of(mesh, jnp.int32, *shape), rows_of(mesh, bool, *shape)
        return Prompts(tokens, valid, self._image(mesh, rows))

    def _rollout(self, mesh: Mesh, rows: int) -> Program:
        arguments = (weights_of(mesh, self.model), self._prompts(mesh, rows), key_shape())
        return Program(self.policy.rollout, arguments, kept=(0,))

    def _prefill(self, mesh: Mesh, rows: int) -> Program:
        def run(params, prompts):
            image = prompts.info.get("image")
            return prefill(self.model, params, prompts.tokens, prompts.valid, self.prompt, image)

        return Program(run, (sampling_params(mesh, self.model), self._prompts(mesh, rows)))

    def _decode(self, mesh: Mesh, rows: int) -> Program:
        def run(params, cache, tokens, positions, key):
            def step(carry, key):
                cache, tokens, positions = carry
                logits, cache = decode(self.model, params, tokens, positions, cache)
                tokens, logprobs = sample_token(key, logits)
                return (cache, tokens, positions + 1), (tokens, logprobs)

            keys = jax.random.split(key, DECODED)
            return jax.lax.scan(step, (cache, tokens, positions), keys)

        numbers = rows_of(mesh, jnp.int32, rows)
        cache = cache_of(mesh, self.model, rows, self.length)
        params = sampling_params(mesh, self.model)
        return Program(run, (params, cache, numbers, numbers, key_shape()), donated=(1,))

    def _score(self, mesh: Mesh, rows: int) -> Program:
        traj = trajectory_of(mesh, rows, self.length, **self._image(mesh, rows))
        return Program(self.policy.score, (weights_of(mesh, self.model), traj), kept=(0,))

    def _reward(self, mesh: Mesh, rows: int) -> Program:
        tokens = rows_of(mesh, jnp.int32, rows, self.length)
        valid = rows_of(mesh, bool, rows, self.length)
        arguments = (weights_of(mesh, self.scorer), tokens, valid)
        return Program(self.scorer.score, arguments, kept=(0,))

    def _update(self, mesh: Mesh, rows: int) -> Program:
        batch = self.rows // self.rl.minibatches
        rows = min(rows, batch)
        loss = scored(self.policy.score, self.loss or (PENALISED if self.reference else CLIPPED))
        traj = trajectory_of(mesh, batch, self.length, **self._image(mesh, batch))
        data = (traj, rows_of(mesh, jnp.float32, batch, self.length))
        return training(
            mesh,
            self.model.boxed_init,
            self.rl.optimizer,
            lambda params, batch: loss(params, *batch),
            data,
            batch // rows,
        )

    def _learn_values(self, mesh: Mesh, rows: int) -> Program:
        """One gradient step of the critic on the whole batch."""
        total, scorer, time = self.rows, self.scorer, self.length

        def loss(params, batch):
            traj, targets = batch
            values = scorer.values(params, traj.tokens, traj.valid)
            return Loss({"value": losses.value_loss(values, targets, targets, traj.mask)}, {})

        batch = (trajectory_of(mesh, total, time), rows_of(mesh, jnp.float32, total, time))
        assert self.critic is not None
        cuts = total // min(rows, total)
        return training(mesh, scorer.boxed_init, self.critic, loss, batch, cuts)


def reinforcement(
    config: Any,
    *,
    prompt: int,
    response: int | None = None,
    group_size: int | None = None,
    **more: Any,
) -> list[Workload]:
    """The programs of a configuration with `model`, `rl`, `group_size` and `max_response`.

    Args:
      config: an experiment's.
      prompt: longest, in tokens.
      response: longest, in tokens; `config.max_response` without it.
      group_size: `config.group_size` without it.
      **more: of `Rollouts`.
    """
    response = config.max_response if response is None else response
    group_size = config.group_size if group_size is None else group_size
    model = LanguageModel(config.model)
    return Rollouts(model, config.rl, group_size, prompt, response, **more).workloads()


def guided_decoding(
    model: LanguageModel, rl: PolicyGradientConfig, candidates: int, prompt: int, response: int
) -> list[Workload]:
    """Decoding of several candidates a prompt that a frozen scorer chooses among: nothing is trained."""
    rollouts = Rollouts(model, rl, candidates, prompt, response, reward_model=True)

    def held(mesh: Mesh) -> dict[str, Any]:
        parts = {"policy": model, "reward model": rollouts.scorer}
        return {name: weights_of(mesh, part) for name, part in parts.items()}

    named = ("rollout", "prefill", "decode", "reward")
    return in_one_step([it for it in rollouts.workloads() if it.name in named], held)


def with_process_rewards(
    rollouts: Rollouts, optimizer: OptimizerConfig, beta: float
) -> list[Workload]:
    """Reinforcement beside an implicit process reward model, which scores all rows and learns from them."""
    model, rows, length = rollouts.model, rollouts.rows, rollouts.length

    def learner(cut: int) -> Learner:
        cuts = rows // min(cut, rows)
        return implicit_process_reward(model, optimizer, 1000, beta=beta, micro_batches=cuts)

    def observe(mesh: Mesh, cut: int) -> Program:
        own = learner(cut)

        def run(state, traj, key):
            return own.observe(state, traj, key)[1].info["process_rewards"]

        state = abstract(mesh, own.init, key_shape())
        return Program(run, (state, trajectory_of(mesh, rows, length), key_shape()), kept=(0,))

    def learn(mesh: Mesh, cut: int) -> Program:
        own, numbers = learner(cut), rows_of(mesh, jnp.float32, rows, length)
        state = abstract(mesh, own.init, key_shape())
        traj = trajectory_of(mesh, rows, length, process_rewards=numbers)
        arguments = (state, traj, numbers, key_shape())
        return Program(own.update, arguments, donated=(0,), kept=(0,))

    def held(mesh: Mesh) -> dict[str, Any]:
        return {"process reward model": state_of(mesh, model.boxed_init, optimizer)}

    cut, sizes = rows // rollouts.rl.batch_cuts, sizes_of(model.config)
    learning = [
        Workload("process_rewards", cut, observe, 1, sizes),
        Workload("process_reward_model", cut, learn, 1, sizes),
    ]
    return in_one_step([*rollouts.workloads(), *learning], rollouts.held, held)
