"""TPU slices by name: how many chips and hosts "v5e:4x4" has, and what Google Cloud calls it."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

CHIPS_A_HOST = 4  # of a slice of several hosts, in every generation below


class TopologyError(ValueError):
    """A slice that does not exist."""


class Generation(NamedTuple):
    """How Google Cloud calls a TPU generation.

    Attributes:
      accelerator: the accelerator type before the dash.
      units: what the accelerator type counts for each chip: chips or TensorCores.
      gke: the value of the node label `cloud.google.com/gke-tpu-accelerator`.
      runtime: the image of a TPU VM.
      axes: of a topology.
      one_host: chips of the largest slice that is one host.
    """

    accelerator: str
    units: int
    gke: str
    runtime: str
    axes: int
    one_host: int


GENERATIONS: Mapping[str, Generation] = {
    "v4": Generation("v4", 2, "tpu-v4-podslice", "tpu-ubuntu2204-base", 3, 4),
    "v5e": Generation("v5litepod", 1, "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite", 2, 8),
    "v5p": Generation("v5p", 2, "tpu-v5p-slice", "v2-alpha-tpuv5", 3, 4),
    "v6e": Generation("v6e", 1, "tpu-v6e-slice", "v2-alpha-tpuv6e", 2, 8),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice.

    Attributes:
      generation: of the chips.
      topology: chips along each axis of the interconnect, "4x4".
      chips: in all.
      hosts: machines; each is a process.
    """

    generation: Generation
    topology: str
    chips: int
    hosts: int

    @classmethod
    def parse(cls, text: str) -> "Slice":
        """The slice called "v5e:4x4".

        Raises:
          TopologyError: an unknown generation, axes that it has not, or chips that make no whole hosts.
        """
        name, _, topology = text.partition(":")
        if name not in GENERATIONS:
            known = ", ".join(GENERATIONS)
            raise TopologyError(f"--topology {text}: expected one of {known}, found {name!r}")
        generation = GENERATIONS[name]
        axes = topology.split("x")
        if len(axes) != generation.axes or not all(re.fullmatch(r"[1-9]\d*", n) for n in axes):
            example = "x".join("4" * generation.axes)
            raise TopologyError(f"--topology {text}: expected a size such as {name}:{example}")
        chips = math.prod(map(int, axes))
        if chips > generation.one_host and chips % CHIPS_A_HOST:
            raise TopologyError(
                f"--topology {text}: expected a multiple of {CHIPS_A_HOST} chips, found {chips}"
            )
        hosts = 1 if chips <= generation.one_host else chips // CHIPS_A_HOST
        return cls(generation, topology, chips, hosts)
