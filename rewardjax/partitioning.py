"""Logical axis names and the one table that maps them to the mesh.

Models name the axes of their parameters and activations (`"embed"`, `"heads"`, `"batch"`, ...). The
mesh has the axes `data`, `fsdp` and `tensor`; `RULES` says which logical axis lies on which of them.
"""

from collections.abc import Mapping

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

MESH_AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "time": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "layers": None,
    "width": None,  # the embedding axis of an activation: fsdp already holds its batch
}


def spec(names: tuple[str | None, ...]) -> PartitionSpec:
    """The partition of an array whose axes carry these logical names (None: not partitioned).

    Raises:
      KeyError: a name that `RULES` lacks.
    """
    return PartitionSpec(*(None if name is None else RULES[name] for name in names))


def constrain(array: Array, *names: str | None) -> Array:
    """Lay `array` out by its logical axes on the ambient mesh; unchanged where there is none.

    Inside a `jax.shard_map` the mesh axes that it maps over are left out: the array is one shard's.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if len(mesh.manual_axes) == len(mesh.axis_names):
        return array
    axes = (_without(axis, mesh.manual_axes) for axis in spec(names))
    return jax.lax.with_sharding_constraint(array, PartitionSpec(*axes))


def _without(axis: str | tuple[str, ...] | None, taken: tuple[str, ...]):
    """An entry of a partition less the mesh axes in `taken`."""
    if isinstance(axis, tuple):
        return tuple(name for name in axis if name not in taken) or None
    return None if axis in taken else axis
