"""Shapes with shardings, in place of the arrays of a full-size run."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct
from jax.sharding import Mesh, NamedSharding

from rewardjax.models.language_model import LanguageModel, sampling_axes
from rewardjax.models.transformer import Cache
from rewardjax.partitioning import spec
from rewardjax.training.sharding import state_shardings


def abstract(mesh: Mesh, init: Callable[..., Any], *arguments: Any) -> Any:
    """What `init(*arguments)` would give, laid out on the mesh by its logical axis names."""
    boxed = jax.eval_shape(init, *arguments)
    shardings = state_shardings(mesh, boxed)
    return jax.tree.map(
        lambda x, where: ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        nn.meta.unbox(boxed),
        shardings,
    )


def weights_of(mesh: Mesh, model: Any) -> Any:
    """A model's parameters (`boxed_init`) as they are trained: in float32, over all axes of the mesh."""
    return abstract(mesh, model.boxed_init, key_shape())


def sampling_params(mesh: Mesh, model: LanguageModel) -> Any:
    """The parameters as `LanguageModel.for_sampling` lays them out."""

    def lay(box):
        where = NamedSharding(mesh, spec(sampling_axes(box.names)))
        return ShapeDtypeStruct(box.value.shape, jnp.dtype(model.config.dtype), sharding=where)

    boxed = jax.eval_shape(model.boxed_init, key_shape())
    return jax.tree.map(lay, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def key_shape() -> Any:
    """The shape of a random key."""
    return jax.eval_shape(lambda: jax.random.key(0))


def rows_of(mesh: Mesh, dtype: Any, *shape: int) -> Any:
    """An array whose first axis is the batch."""
    return ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec(("batch",))))


def cache_of(mesh: Mesh, model: LanguageModel, rows: int, slots: int) -> Cache:
    """A key-value cache: rows over the data axes, heads over the tensor axis."""

    def lay(x):
        tail = ("batch", "kv_heads", None, None) if x.ndim >= 4 else ("batch", None)[: x.ndim]
        where = NamedSharding(mesh, spec((None,) * (x.ndim - len(tail)) + tail))
        return ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(lay, jax.eval_shape(lambda: model.init_cache(rows, slots)))
