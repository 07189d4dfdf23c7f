"""Full-size programs of heads on a frozen backbone; `recipes/workloads.py` has those of whole models."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from rewardjax.compilation.layout import rows_of, sampling_params
from rewardjax.compilation.program import Program, Workload
from rewardjax.losses import Loss
from rewardjax.models.features import last_token_features
from rewardjax.models.language_model import LanguageModel
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.workloads import sequences_of, sizes_of, training


def feature_extraction(model: LanguageModel, rows: int, length: int) -> Workload:
    """A frozen backbone's features of `rows` sequences of `length` tokens."""

    def program(mesh: Mesh, rows: int) -> Program:
        def run(params, batch):
            names = ("tokens", "valid", "mask")
            return last_token_features(model, params, *(batch[name] for name in names))

        batch = sequences_of(mesh, rows, length)
        return Program(run, (sampling_params(mesh, model), batch))

    return Workload("features", rows, program, 1, sizes_of(model.config))


def feature_training(
    init: Callable[..., Any],
    config: SupervisedConfig,
    loss: Callable[..., Loss],
    shapes: dict[str, tuple[int, ...]],
    name: str = "heads",
) -> Workload:
    """A step of small modules on a frozen backbone's features, kept as arrays.

    Args:
      init: `(key) -> params`, with logical axis names.
      config: batch and optimizer.
      loss: `(params, batch) -> Loss`.
      shapes: of a row of each column of the batch, all float32.
      name: of the workload.
    """

    def program(mesh: Mesh, rows: int) -> Program:
        batch = {
            key: rows_of(mesh, jnp.float32, config.batch_size, *shape)
            for key, shape in shapes.items()
        }
        cuts = config.batch_size // rows
        return training(mesh, init, config.optimizer, loss, batch, cuts)

    return Workload(name, config.batch_size // config.micro_batches, program)
