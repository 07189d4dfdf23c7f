"""A full-size training program of any loss on any batch; `recipes/workloads.py` has the usual ones."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from rewardjax.compilation.layout import rows_of
from rewardjax.compilation.program import Program, Workload
from rewardjax.losses import Loss
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.workloads import sizes_of, training


def objective_training(
    model: Any,
    config: SupervisedConfig,
    loss: Callable[..., Loss],
    batch: Callable[[Mesh], Any],
    name: str,
    frozen: Callable[[Mesh], Any] | None = None,
) -> Workload:
    """A step of a model (`boxed_init`, `config`) by `loss(params, batch)`.

    Args:
      model: whose parameters are trained.
      config: batch size, cuts and optimizer.
      loss: of the parameters and a batch of `config.batch_size` rows.
      batch: `(mesh) -> batch`, as shapes.
      name: of the workload.
      frozen: `(mesh) -> parameters` that `loss(params, batch, frozen)` reads, as shapes.
    """

    def program(mesh: Mesh, rows: int) -> Program:
        cuts = config.batch_size // rows
        fixed = None if frozen is None else frozen(mesh)
        return training(mesh, model.boxed_init, config.optimizer, loss, batch(mesh), cuts, fixed)

    cut = config.batch_size // config.micro_batches
    return Workload(name, cut, program, 1, sizes_of(model.config))


def lists_of(mesh: Mesh, rows: int, responses: int, prompt: int, response: int) -> dict[str, Any]:
    """Prompts with several responses each, as `models.multi_response` takes them."""
    shapes = {"prompt": (rows, prompt), "responses": (rows, responses, response)}
    tokens = {name: rows_of(mesh, jnp.int32, *shape) for name, shape in shapes.items()}
    flags = {"prompt_valid": shapes["prompt"], "valid": shapes["responses"]}
    return tokens | {name: rows_of(mesh, bool, *shape) for name, shape in flags.items()}
