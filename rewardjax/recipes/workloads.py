"""The device programs of the recipes at full size, with shapes in place of arrays.

An experiment names those of its `paper` scale (`Experiment.workloads`); `rewardjax compile` compiles
them. Each is made of the functions that a run is made of: `prefill` and `decode` of `generate`, a policy's
`score`, `update` on a recipe's loss.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rewardjax import losses
from rewardjax.compilation.layout import abstract, cache_of, key_shape, rows_of, sampling_params
from rewardjax.compilation.program import Program, Workload
from rewardjax.losses import Loss, PolicyLoss
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig, check_length
from rewardjax.recipes.implicit_reward import implicit_process_reward
from rewardjax.recipes.objectives import (
    ScoreLoss,
    direct_preference,
    language_modelling,
    reward_modelling,
)
from rewardjax.recipes.policy_gradient import Learner, PolicyGradientConfig, scored
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.text_reward_model import TextConfig
from rewardjax.recipes.verifier import token_level, verification_loss
from rewardjax.sampling.generate import decode, prefill, sample_token
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.training.optimizer import OptimizerConfig, make_optimizer
from rewardjax.training.state import TrainState, update
from rewardjax.trajectory import Trajectory

PREFILLED = 16  # prompts at a time
DECODED = (
    32  # tokens of each slot in a call of `decode`: a cache changes its layout at a call's ends
)
PENALISED = losses.policy_loss(
    surrogate=losses.clipped(0.2), regularisers=(losses.kl_to_reference(0.001),)
)


def sizes_of(model: TransformerConfig) -> dict[str, int]:
    """The axes that a mesh divides, by their logical names."""
    named = {"embed": model.width, "heads": model.heads, "kv_heads": model.kv_heads}
    return named | {"mlp": model.mlp_width, "vocab": model.vocab}


def trajectory_of(mesh: Mesh, rows: int, time: int, **info: Any) -> Trajectory:
    """A batch of token sequences with `info["reference_logprobs"]` and these columns."""
    flags, numbers = rows_of(mesh, bool, rows, time), rows_of(mesh, jnp.float32, rows, time)
    tokens = rows_of(mesh, jnp.int32, rows, time)
    return Trajectory(tokens, flags, flags, numbers, info={"reference_logprobs": numbers, **info})


def sequences_of(mesh: Mesh, *shape: int) -> dict[str, Any]:
    """A batch of the supervised objectives: `[rows, length]`, or `[rows, responses, length]`."""
    flags = rows_of(mesh, bool, *shape)
    return {"tokens": rows_of(mesh, jnp.int32, *shape), "valid": flags, "mask": flags}


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """How a language model is trained by reinforcement at full size.

    Attributes:
      model: the language model.
      rl: prompts a step, cuts of a batch, optimizer.
      group_size: responses a prompt.
      prompt, response: longest of each, in tokens.
      slots: responses decoded at a time, before others take their places.
      loss: of the policy.
    """

    model: LanguageModel
    rl: PolicyGradientConfig
    group_size: int
    prompt: int
    response: int
    slots: int = 128
    loss: PolicyLoss = PENALISED

    @classmethod
    def of(cls, policy: LanguagePolicy, rl: PolicyGradientConfig, group_size: int) -> "Rollouts":
        """Those of a policy whose prompts have `prompt_columns` tokens."""
        return cls(policy.model, rl, group_size, policy.prompt_columns, policy.max_new)

    @property
    def rows(self) -> int:
        """Responses a step."""
        return self.rl.prompts * self.group_size

    @property
    def policy(self) -> LanguagePolicy:
        """The policy, for its `score`."""
        return LanguagePolicy(self.model, self.response, (), prompt_columns=self.prompt)

    def workloads(self) -> list[Workload]:
        """Prefill, decode, score, update.

        Raises:
          ValueError: a prompt and its response are longer than the model's context.
        """
        check_length(self.model.config, self.prompt + self.response)
        slots = min(self.slots, self.rows)
        rounds = -(-self.rows // slots)
        cut = self.rows // (self.rl.minibatches * self.rl.micro_batches)
        sizes = sizes_of(self.model.config)
        prompts = min(self.rl.prompts, PREFILLED)
        return [
            Workload("prefill", prompts, self._prefill, -(-self.rl.prompts // prompts), sizes),
            Workload("decode", slots, self._decode, rounds * -(-self.response // DECODED), sizes),
            Workload("score", cut, self._score, self.rows // cut, sizes),
            Workload("update", cut, self._update, self.rl.epochs * self.rl.minibatches, sizes),
        ]

    def _image(self, mesh: Mesh, rows: int) -> dict[str, Any]:
        vision = getattr(self.model, "vision", None)
        if vision is None:
            return {}
        shape = (vision.height, vision.width, vision.channels)
        return {"image": rows_of(mesh, jnp.float32, rows, *shape)}

    def _prefill(self, mesh: Mesh, rows: int) -> Program:
        def run(params, tokens, valid, image=None):
            return prefill(self.model, params, tokens, valid, self.prompt, image)

        shape = (rows, self.prompt)
        tokens, valid = rows_of(mesh, jnp.int32, *shape), rows_of(mesh, bool, *shape)
        image = tuple(self._image(mesh, rows).values())
        return Program(run, (sampling_params(mesh, self.model), tokens, valid, *image))

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
        cache = cache_of(mesh, self.model, rows, self.prompt + self.response)
        params = sampling_params(mesh, self.model)
        return Program(run, (params, cache, numbers, numbers, key_shape()), donated=(1,))

    def _score(self, mesh: Mesh, rows: int) -> Program:
        params = abstract(mesh, self.model.boxed_init, key_shape())
        time = self.prompt + self.response
        return Program(
            self.policy.score,
            (params, trajectory_of(mesh, rows, time, **self._image(mesh, rows))),
        )

    def _update(self, mesh: Mesh, rows: int) -> Program:
        batch = self.rows // self.rl.minibatches
        rows = min(rows, batch)
        loss = scored(self.policy.score, self.loss)
        time = self.prompt + self.response
        traj = trajectory_of(mesh, batch, time, **self._image(mesh, batch))
        data = (traj, rows_of(mesh, jnp.float32, batch, time))
        return training(
            mesh,
            self.model.boxed_init,
            self.rl.optimizer,
            lambda params, batch: loss(params, *batch),
            data,
            batch // rows,
        )


def reinforcement(
    config: Any,
    *,
    prompt: int,
    response: int | None = None,
    group_size: int | None = None,
    slots: int = 128,
) -> list[Workload]:
    """The programs of a configuration with `model`, `rl`, `group_size` and `max_response`.

    Args:
      config: an experiment's.
      prompt: longest, in tokens.
      response: longest, in tokens; `config.max_response` without it.
      group_size: `config.group_size` without it.
      slots: responses decoded at a time.
    """
    response = config.max_response if response is None else response
    group_size = config.group_size if group_size is None else group_size
    model = LanguageModel(config.model)
    return Rollouts(model, config.rl, group_size, prompt, response, slots).workloads()


def training(
    mesh: Mesh,
    init: Callable[..., Any],
    optimizer: OptimizerConfig,
    loss: Callable[..., Loss],
    batch: Any,
    micro_batches: int,
    frozen: Any = None,
) -> Program:
    """One optimizer step; with `frozen` parameters, `loss(params, batch, frozen)`."""
    tx = make_optimizer(optimizer, 1000)

    def step(state, batch, frozen):
        def own(params, cut):
            return loss(params, cut, *(() if frozen is None else (frozen,)))

        params, opt_state, metrics = update(
            tx, own, state.params, state.opt_state, batch, micro_batches
        )
        return state.replace(params=params, opt_state=opt_state), metrics

    state = abstract(mesh, lambda key: TrainState.create(init(key), tx), key_shape())
    return Program(step, (state, batch, frozen), donated=(0,))


def imitation(
    model: LanguageModel, config: SupervisedConfig, length: int, name: str = "sft"
) -> Workload:
    """Language modelling on demonstrations of `length` tokens."""

    def program(mesh: Mesh, rows: int) -> Program:
        return training(
            mesh,
            model.boxed_init,
            config.optimizer,
            language_modelling(model),
            sequences_of(mesh, config.batch_size, length),
            config.batch_size // rows,
        )

    cut = config.batch_size // config.micro_batches
    return Workload(name, cut, program, 1, sizes_of(model.config))


def reward_model_training(
    scorer: RewardModel, config: SupervisedConfig, length: int, name: str = "reward_model"
) -> Workload:
    """Bradley-Terry on pairs of `length` tokens each; `rows` are pairs."""

    def loss(scores, batch):
        return losses.bradley_terry(scores[:, 0] - scores[:, 1])

    def program(mesh: Mesh, rows: int) -> Program:
        return training(
            mesh,
            scorer.boxed_init,
            config.optimizer,
            reward_modelling(scorer, loss),
            sequences_of(mesh, config.batch_size, 2, length),
            config.batch_size // rows,
        )

    cut = config.batch_size // config.micro_batches
    return Workload(name, cut, program, 1, sizes_of(scorer.config))


def preference_training(
    model: LanguageModel,
    config: SupervisedConfig,
    length: int,
    divergence=None,
    name: str = "dpo",
    *,
    ratio_loss: ScoreLoss | None = None,
    responses: int = 2,
    token_weights: bool = False,
) -> Workload:
    """A loss on log-ratios of `responses` of `length` tokens each; `rows` are prompts.

    It is DPO's without `ratio_loss`. The reference is a second set of weights. With `token_weights` each
    batch says how much each token's log-ratio counts.
    """

    def dpo(log_ratios, batch):
        return losses.bradley_terry(0.1 * (log_ratios[:, 0] - log_ratios[:, 1]))

    def program(mesh: Mesh, rows: int) -> Program:
        shape = (config.batch_size, responses, length)
        weights = {"token_weight": rows_of(mesh, jnp.float32, *shape)} if token_weights else {}
        return training(
            mesh,
            model.boxed_init,
            config.optimizer,
            direct_preference(model, ratio_loss or dpo, divergence),
            sequences_of(mesh, *shape) | weights,
            config.batch_size // rows,
            frozen=abstract(mesh, model.boxed_init, key_shape()),
        )

    cut = config.batch_size // config.micro_batches
    return Workload(name, cut, program, 1, sizes_of(model.config))


def valuing(
    scorer: RewardModel,
    optimizer: OptimizerConfig,
    rows: int,
    length: int,
    micro_batches: int = 1,
) -> Workload:
    """One update of a critic on `rows` sequences of `length` tokens."""

    def loss(params, batch):
        traj, targets = batch
        values = scorer.values(params, traj.tokens, traj.valid)
        return Loss({"value": losses.value_loss(values, targets, targets, traj.mask)}, {})

    def program(mesh: Mesh, cut: int) -> Program:
        batch = (
            trajectory_of(mesh, rows, length),
            rows_of(mesh, jnp.float32, rows, length),
        )
        return training(mesh, scorer.boxed_init, optimizer, loss, batch, rows // min(cut, rows))

    return Workload("critic", rows // micro_batches, program, 1, sizes_of(scorer.config))


def process_rewarding(
    model: LanguageModel,
    optimizer: OptimizerConfig,
    beta: float,
    rows: int,
    length: int,
    micro_batches: int = 1,
) -> list[Workload]:
    """What an implicit process reward model does with `rows` sequences: score them, then learn from them."""

    def learner(cut: int) -> Learner:
        cuts = rows // min(cut, rows)
        return implicit_process_reward(model, optimizer, 1000, beta=beta, micro_batches=cuts)

    def observe(mesh: Mesh, cut: int) -> Program:
        own = learner(cut)

        def run(state, traj, key):
            return own.observe(state, traj, key)[1].info["process_rewards"]

        state = abstract(mesh, own.init, key_shape())
        return Program(run, (state, trajectory_of(mesh, rows, length), key_shape()))

    def learn(mesh: Mesh, cut: int) -> Program:
        own, numbers = learner(cut), rows_of(mesh, jnp.float32, rows, length)
        state = abstract(mesh, own.init, key_shape())
        traj = trajectory_of(mesh, rows, length, process_rewards=numbers)
        return Program(own.update, (state, traj, numbers, key_shape()), donated=(0,))

    cut, sizes = rows // micro_batches, sizes_of(model.config)
    return [
        Workload("process_rewards", cut, observe, 1, sizes),
        Workload("process_reward_model", cut, learn, 1, sizes),
    ]


def verifier_training(text: TextConfig) -> list[Workload]:
    """A generator's training, and that of a verifier after every token, with demonstrations beside it."""
    model, length, fit = text.model, text.buckets[-1], text.fit
    scorer = RewardModel(model)

    def program(mesh: Mesh, cut: int) -> Program:
        judged = sequences_of(mesh, fit.batch_size, length)
        judged |= {"correct": rows_of(mesh, jnp.float32, fit.batch_size)}
        language = sequences_of(mesh, text.pretraining.batch_size, length)
        return training(
            mesh,
            scorer.boxed_init,
            fit.optimizer,
            verification_loss(scorer, token_level),
            judged | {"language": language},
            fit.batch_size // cut,
        )

    cut = fit.batch_size // fit.micro_batches
    return [
        imitation(LanguageModel(model), text.pretraining, length, "generator"),
        Workload("verifier", cut, program, 1, sizes_of(model)),
    ]
