"""Comparisons by several objectives at once, and training on all of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rewardjax.compilation.layout import weights_of
from rewardjax.compilation.program import Workload
from rewardjax.losses import Loss
from rewardjax.models.multi_head import MultiHead
from rewardjax.recipes.objective_workloads import objective_training
from rewardjax.recipes.objectives import direct_preference
from rewardjax.recipes.preference_lab import pairwise
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.workloads import sequences_of
from rewardjax.trajectory import Trajectory

COLUMNS = ("tokens", "valid", "mask")
Pairs = dict[str, Any]  # `tokens`, `valid`, `mask` and `theme`, `[pairs, 2, ...]`
Utilities = Callable[[Trajectory], Float[Array, "batch objectives"]]


def dpo_by_objective(model: MultiHead, beta: float, route: tuple[int, ...]):
    """Each objective's DPO on the head that `route` names (MAH-DPO, arXiv:2510.01167).

    The loss takes `frozen["heads"]`, all heads of the reference, and `frozen["alpha"]` `[objectives]`, the
    objectives' weights. In a batch `tokens`, `valid` and `mask` are `[batch, objectives, 2, time]`: a row has
    a pair for every objective, so that none is ever missing. With one head for all it is DPO on mixed pairs.
    """
    objective = direct_preference(model.model, lambda found, batch: pairwise(beta * found, batch))

    def loss(params, batch, frozen) -> Loss:
        terms, metrics = {}, {}
        for i, head in enumerate(route):
            own = {name: x[:, i] for name, x in batch.items()}
            found = objective(model.head(params, head), own, model.head(frozen["heads"], head))
            terms[f"objective_{i}"] = found.terms["preference"].scale(frozen["alpha"][i])
            metrics[f"accuracy_{i}"] = found.metrics["accuracy"]
        return Loss(terms, metrics)

    return loss


def heads_training(model: MultiHead, config: SupervisedConfig, length: int, name: str) -> Workload:
    """A step of `dpo_by_objective` with an objective for each head and `length` tokens a response."""

    def batch(mesh: Mesh):
        return sequences_of(mesh, config.batch_size, model.heads, 2, length)

    def frozen(mesh: Mesh):
        alpha = jax.ShapeDtypeStruct((model.heads,), jnp.float32)
        return {"heads": weights_of(mesh, model), "alpha": alpha}

    loss = dpo_by_objective(model, 0.1, tuple(range(model.heads)))
    return objective_training(model, config, loss, batch, name, frozen)


def responses_of(pairs: Pairs) -> Trajectory:
    """Both responses of each pair, as adjacent rows."""
    tokens, valid, mask, theme = (
        jnp.asarray(pairs[name]).reshape(-1, pairs[name].shape[-1]) for name in (*COLUMNS, "theme")
    )
    return Trajectory(tokens, mask, valid, jnp.zeros(tokens.shape), info={"theme": theme})


def side_by_side(pairs: list[Pairs]) -> Pairs:
    """Objectives' own pairs in the rows of one batch, `[pairs, objectives, 2, time]`."""
    return {name: np.stack([own[name] for own in pairs], axis=1) for name in COLUMNS}


def disagreeing(pairs: Pairs, utilities: Utilities) -> Pairs:
    """Pairs that the first objective orders as given and the second the other way, as `side_by_side`.

    Both objectives have the same two responses; what one prefers the other rejects.
    """
    found = np.asarray(utilities(responses_of(pairs))).reshape(-1, 2, 2)
    first, second = (found[:, 0] - found[:, 1]).T
    kept = {name: pairs[name][(first > 0) & (second < 0)] for name in COLUMNS}
    return side_by_side([kept, {name: x[:, ::-1] for name, x in kept.items()}])
