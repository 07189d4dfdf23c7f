"""TPU slices by name, and the published figures of their chips."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from rewardjax.tpu_slices import Slice

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one chip.

    Attributes:
      flops: matrix products in bfloat16, operations a second.
      memory: high-bandwidth memory, bytes.
      bandwidth: of that memory, bytes a second.
      interconnect: to other chips of the slice, over all links, bytes a second in one direction.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float


# Google Cloud's pages on each generation's architecture; the interconnect is half of what they give
# for both directions together.
CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * GIB, 1638e9, 400e9),
}

# Two cores of these are one device, as they are where they run; the compiler has to be told.
TWO_CORES = {"v4": {"chip_config_name": "megacore"}}

QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


class CompileError(ValueError):
    """A topology, a mesh or a program that cannot be compiled, and why."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices of a TPU slice, for the compiler alone.

    Attributes:
      name: such as "v5e:4x4".
      devices: its chips, of which a mesh is made.
      chip: the figures of one.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip


def tpu_topology(name: str) -> Topology:
    """The slice of this name ("v5e:4x4"); TPUs are not needed, their compiler is.

    Raises:
      TopologyError: it is not of that form, or of no known generation.
      CompileError: the compiler has no such slice, or is not installed.
    """
    Slice.parse(name)  # says what is wrong with a name
    generation, _, _ = name.partition(":")
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise CompileError("the TPU compiler is not installed: pip install -e '.[tpu-compile]'")
    # Without these the library looks for TPUs here and for other programs that use them, and says so.
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(name, "tpu", **TWO_CORES.get(generation, {}))
    except (JaxRuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise CompileError(f"topology {name!r}: there is no such slice: {reason}") from error
    return Topology(name, found.devices, CHIPS[generation])
