"""The device programs of the recipes at full size, with shapes in place of arrays.

An experiment names those of its `paper` scale (`Experiment.workloads`); `rewardjax compile` compiles
them. Each is made of the functions that a run is made of. Here are those that train on data;
`recipes/rollout_workloads.py` has reinforcement's.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from rewardjax import losses
from rewardjax.compilation.layout import abstract, key_shape, rows_of, weights_of
from rewardjax.compilation.program import Program, Workload
from rewardjax.losses import Loss
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import (
    ScoreLoss,
    direct_preference,
    language_modelling,
    reward_modelling,
    value_modelling,
)
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.text_reward_model import TextConfig
from rewardjax.recipes.verifier import token_level, verification_loss
from rewardjax.training.optimizer import OptimizerConfig, make_optimizer
from rewardjax.training.state import TrainState, update


def sizes_of(model: TransformerConfig) -> dict[str, int]:
    """The axes that a mesh divides, by their logical names."""
    named = {"embed": model.width, "heads": model.heads, "kv_heads": model.kv_heads}
    return named | {"mlp": model.mlp_width, "vocab": model.vocab}


def sequences_of(mesh: Mesh, *shape: int) -> dict[str, Any]:
    """A batch of the supervised objectives: `[rows, length]`, or `[rows, responses, length]`."""
    flags = rows_of(mesh, bool, *shape)
    return {"tokens": rows_of(mesh, jnp.int32, *shape), "valid": flags, "mask": flags}


def state_of(mesh: Mesh, init: Callable[..., Any], optimizer: OptimizerConfig) -> TrainState:
    """The parameters of `init(key)` and their optimizer's state."""
    tx = make_optimizer(optimizer, 1000)
    return abstract(mesh, lambda key: TrainState.create(init(key), tx), key_shape())


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

    state = state_of(mesh, init, optimizer)
    return Program(step, (state, batch, frozen), donated=(0,), kept=(0, 2))


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
            frozen=weights_of(mesh, model),
        )

    cut = config.batch_size // config.micro_batches
    return Workload(name, cut, program, 1, sizes_of(model.config))


def value_training(
    scorer: RewardModel, config: SupervisedConfig, length: int, name: str = "value"
) -> Workload:
    """Regression of every prefix's value, on sequences of `length` tokens."""

    def program(mesh: Mesh, rows: int) -> Program:
        shape = (config.batch_size, length)
        target = {"target": rows_of(mesh, jnp.float32, *shape)}
        return training(
            mesh,
            scorer.boxed_init,
            config.optimizer,
            value_modelling(scorer),
            sequences_of(mesh, *shape) | target,
            config.batch_size // rows,
        )

    cut = config.batch_size // config.micro_batches
    return Workload(name, cut, program, 1, sizes_of(scorer.config))


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
