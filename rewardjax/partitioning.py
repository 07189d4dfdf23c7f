"""Logical axis names and the one table that maps them to the mesh.

Models name the axes of their parameters and activations (`"embed"`, `"heads"`, `"batch"`, ...). The
mesh has the axes `data`, `fsdp`, `tensor` and `sequence`; `RULES` says which logical axis lies on
which of them.
"""

from collections.abc import Mapping

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "time": "sequence",
    "embed": ("fsdp", "sequence"),
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "layers": None,
    "width": None,  # the embedding axis of an activation: `embed`'s mesh axes hold batch and time
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
    A time axis that the mesh does not divide into equal parts (a token being decoded) stays whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if len(mesh.manual_axes) == len(mesh.axis_names):
        return array
    kept = (
        None if name == "time" and time_shards(size) == 1 else name
        for name, size in zip(names, array.shape, strict=True)
    )
    axes = (_without(axis, mesh.manual_axes) for axis in spec(tuple(kept)))
    return jax.lax.with_sharding_constraint(array, PartitionSpec(*axes))


def time_shards(time: int) -> int:
    """Into how many parts the ambient mesh cuts a time axis of this length; 1 leaves it whole."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if "sequence" in mesh.manual_axes else mesh.shape.get("sequence", 1)
    return parts if time % parts == 0 else 1


def _without(axis: str | tuple[str, ...] | None, taken: tuple[str, ...]):
    """An entry of a partition less the mesh axes in `taken`."""
    if isinstance(axis, tuple):
        return tuple(name for name in axis if name not in taken) or None
    return None if axis in taken else axis
