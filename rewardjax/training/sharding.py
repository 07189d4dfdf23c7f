"""Meshes, and where each array of a train state lies on them."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PRNGKeyArray

from rewardjax.models.heads import like
from rewardjax.partitioning import MESH_AXES, spec
from rewardjax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis: copies of the model, shards of it, tensor parts, parts of time."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1


def make_mesh(config: MeshConfig, devices=None) -> Mesh | None:
    """The mesh, or None for a single device.

    Raises:
      ValueError: there are fewer devices than the mesh needs, or other processes' are left out.
    """
    shape = dataclasses.astuple(config)
    needed = math.prod(shape)
    if jax.process_count() > 1 and needed != jax.device_count():
        raise ValueError(
            f"mesh: {config} has {needed} devices; {jax.process_count()} processes have"
            f" {jax.device_count()}, and the mesh has to hold all of them"
        )
    if needed == 1:
        return None
    devices = jax.devices() if devices is None else devices
    if len(devices) < needed:
        raise ValueError(f"mesh: {config} needs {needed} devices, found {len(devices)}")
    return jax.make_mesh(
        shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape), devices=devices[:needed]
    )


def state_shardings(mesh: Mesh, boxed: Any) -> Any:
    """The sharding of each array of a pytree whose parameters carry logical axis names.

    Args:
      mesh: the devices.
      boxed: a (possibly abstract) pytree; arrays without names are replicated.
    """

    def sharding(leaf):
        names = getattr(leaf, "names", ())
        return NamedSharding(mesh, spec(tuple(names)))

    return jax.tree.map(sharding, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def sharded_init(init: Callable[..., Any], mesh: Mesh | None, *args) -> Any:
    """`init(*args)` without its axis names, each array born on its own devices.

    Args:
      init: returns a pytree whose parameters carry logical axis names.
      mesh: the devices; None for one.
      *args: handed to `init`.
    """

    def plain(*args):
        return nn.meta.unbox(init(*args))

    if mesh is None:
        return jax.jit(plain)(*args)
    with jax.set_mesh(mesh):
        shardings = state_shardings(mesh, jax.eval_shape(init, *args))
        return jax.jit(plain, out_shardings=shardings)(*args)


def initial_state(
    init, tx, mesh: Mesh | None, key: PRNGKeyArray, params=None, learners=None, starts=None
) -> TrainState:
    """The train state before the first step, laid out on the mesh.

    Args:
      init: `(key) -> params`, with logical axis names.
      tx: the optimizer of these parameters.
      mesh: the devices; None for one.
      key: consumed.
      params: start from these instead of fresh ones.
      learners: `init` functions of the models trained beside.
      starts: by a learner's name, what its `init` takes after the key.

    Raises:
      ValueError: a start of no learner.
    """
    learners, starts = learners or {}, starts or {}
    if unknown := sorted(starts.keys() - learners.keys()):
        raise ValueError(f"starts: expected some of {sorted(learners)}, found {unknown}")

    def create(key, params, starts):
        boxed = init(key) if params is None else like(init(key), params)
        states = {}
        for i, (name, learner) in enumerate(learners.items(), start=1):
            own_key = jax.random.fold_in(key, i)
            states[name] = learner(own_key, starts[name]) if name in starts else learner(own_key)
        return TrainState.create(boxed, tx, states)

    return sharded_init(create, mesh, key, params, starts)


def batch_sharding(mesh: Mesh, *, stacked: bool) -> NamedSharding:
    """How a batch lies on the mesh: rows over `data` and `fsdp`; `stacked` adds a leading axis."""
    rows = spec(("batch",))
    return NamedSharding(mesh, PartitionSpec(None, *rows) if stacked else rows)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def placed(batch: Any, sharding: NamedSharding) -> Any:
    """A batch that every process holds, laid out on the mesh: each takes its own devices' rows of it."""
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch
    )


def rows_on(mesh: Mesh, rows: int, devices: Iterable[jax.Device]) -> Int[np.ndarray, "held"]:
    """Which of a batch's rows these devices hold, ascending; all where they hold every shard of it.

    Raises:
      ValueError: `rows` is no multiple of the mesh's `data` times `fsdp`.
    """
    held = batch_sharding(mesh, stacked=False).devices_indices_map((rows,))
    return np.unique([row for device in devices for row in range(*held[device][0].indices(rows))])


def placed_rows(
    batch: Any, sharding: NamedSharding, rows: Int[np.ndarray, "held"], size: int
) -> Any:
    """Stacked batches of `size` rows, of which this process holds some, laid out on the mesh.

    Args:
      batch: a pytree of arrays `[steps, held, ...]`.
      sharding: of the whole, by `batch_sharding(mesh, stacked=True)`.
      rows: which rows these are: all that this process's devices need (`rows_on`).
      size: rows of the whole.
    """

    def whole(x):
        def shard(index):
            start, stop, _ = index[1].indices(size)
            first, end = np.searchsorted(rows, (start, stop))
            return x[:, first:end]

        shape = (x.shape[0], size, *x.shape[2:])
        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(whole, batch)
