"""A device program at full size: compiled for a slice, it says whether it fits and what bounds it."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from rewardjax.compilation.chips import GIB, CompileError, Topology
from rewardjax.compilation.flops import matmul_flops
from rewardjax.compilation.hlo import traffic

USABLE = 0.97  # of HBM; the runtime keeps the rest (the compiler gives 15.75 of a v5e's 16 GiB)
ON_TENSOR_CORE = {
    "xla_tpu_enable_offloading_scatter_to_sparsecore": False,
    "xla_tpu_offload_gather_to_sparsecore": False,
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A pure function and what it is called with.

    Attributes:
      function: to be jitted.
      arguments: `jax.ShapeDtypeStruct` with shardings, in place of arrays.
      donated: positions of the arguments whose memory the results take over.
      kept: positions of the arguments that are part of what a whole step holds (`Workload.held`).
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Workload:
    """A device program of an experiment, for any mesh and batch.

    Attributes:
      name: "decode", "update", ...
      rows: sequences (or samples) that are in memory at one time.
      program: `(mesh, rows) -> Program`.
      calls: how often it runs in one step of training.
      sizes: of the model's axes that a mesh divides, by their logical names.
      held: `(mesh) -> {name: shapes}`, what stays in memory through the whole step that this is a part of:
        train states, frozen models. A program alone holds its arguments only.
    """

    name: str
    rows: int
    program: Callable[[Mesh, int], Program]
    calls: int = 1
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    held: Callable[[Mesh], dict[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of one program, for one device and one run of it.

    Attributes:
      name, rows, calls: the workload's.
      arguments, outputs, temporaries: bytes of HBM; outputs in donated memory are not counted twice.
      beside: bytes of what the step holds and the program is not called with.
      capacity: bytes of HBM.
      flops: of its matrix products.
      memory: bytes of HBM traffic.
      collectives: bytes by kind.
      compute_seconds, memory_seconds, interconnect_seconds: each alone at peak rates.
      compile_seconds: what compiling took.
      largest: where it does not fit, what is largest; else empty.
    """

    name: str
    rows: int
    calls: int
    capacity: float
    flops: float
    compile_seconds: float
    arguments: float = 0.0
    outputs: float = 0.0
    temporaries: float = 0.0
    beside: float = 0.0
    memory: float = 0.0
    collectives: dict[str, float] = dataclasses.field(default_factory=dict)
    compute_seconds: float = 0.0
    memory_seconds: float = 0.0
    interconnect_seconds: float = 0.0
    largest: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether there is room for it and for what the step holds beside it."""
        return not self.largest

    @property
    def seconds(self) -> float:
        """The roofline's time: the longest of the three, as if they overlapped."""
        return max(self.compute_seconds, self.memory_seconds, self.interconnect_seconds)

    @property
    def bound(self) -> str:
        """What takes that time: "compute", "memory" or "interconnect"."""
        return max(
            ("compute", "memory", "interconnect"), key=lambda x: getattr(self, f"{x}_seconds")
        )

    def as_json(self) -> dict[str, Any]:
        """All of it, for machines."""
        derived = {"fits": self.fits, "seconds": self.seconds, "bound": self.bound}
        return dataclasses.asdict(self) | derived


def check_mesh(workload: Workload, shape: Mapping[str, int], rules) -> None:
    """Raises CompileError where the mesh does not divide the batch or an axis of the model.

    Args:
      workload: says the sizes.
      shape: devices along each axis of the mesh.
      rules: the mesh axes of each logical axis.
    """
    for axis, size in {"batch": workload.rows, **workload.sizes}.items():
        names = rules[axis] or ()
        names = (names,) if isinstance(names, str) else names
        parts = 1
        for name in names:
            parts *= shape[name]
        if size % parts:
            axes = ", ".join(f"{name}={shape[name]}" for name in names)
            what = "rows" if axis == "batch" else axis
            raise CompileError(
                f"{workload.name}: expected {what} to be a multiple of {parts} ({axes}), found {size}"
            )


def compile_workload(workload: Workload, mesh: Mesh, where: Topology) -> Report:
    """Compile one program for a slice.

    Args:
      workload: what is compiled.
      mesh: over the slice's devices.
      where: the slice.

    Returns:
      The report; one that does not fit names its largest buffers.
    """
    start, chip = time.perf_counter(), where.chip
    program = workload.program(mesh, workload.rows)
    with jax.set_mesh(mesh):
        platform = mesh.devices.flat[0].platform
        flops = matmul_flops(program.function, *program.arguments, platform=platform) / mesh.size
        jitted = jax.jit(program.function, donate_argnums=program.donated)
        lowered = jitted.lower(*program.arguments)
        try:
            compiled, text = readable(lowered)
        except JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            compiled, largest = None, largest_buffers(str(error), program)
    spent = time.perf_counter() - start
    held = {} if workload.held is None else workload.held(mesh)
    beside = max(_bytes(held) - _bytes([program.arguments[i] for i in program.kept]), 0.0)
    known = (workload.name, workload.rows, workload.calls, chip.memory, flops, spent)
    if compiled is None:
        return Report(*known, beside=beside, compute_seconds=flops / chip.flops, largest=largest)
    stats: Any = compiled.memory_analysis()
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    own = stats.argument_size_in_bytes + outputs + stats.temp_size_in_bytes
    moved = traffic(text)
    return Report(
        *known,
        arguments=stats.argument_size_in_bytes,
        outputs=outputs,
        temporaries=stats.temp_size_in_bytes,
        beside=beside,
        memory=moved.memory,
        collectives=moved.collectives,
        compute_seconds=flops / chip.flops,
        memory_seconds=moved.memory / chip.bandwidth,
        interconnect_seconds=sum(moved.collectives.values()) / chip.interconnect,
        largest=() if own + beside <= USABLE * chip.memory else _crowded(own, held),
    )


def _crowded(own: float, held: dict[str, Any]) -> tuple[str, ...]:
    """What fills a device on which the program alone would fit."""
    parts = (f"{_bytes(tree) / GIB:.2f} GiB a device: {name}" for name, tree in held.items())
    return (f"{own / GIB:.2f} GiB a device of its own, and the step holds", *parts)


def readable(lowered: Any) -> tuple[Any, str]:
    """A compiled program and its text.

    The compiler of v5p may give scatters and gathers to its SparseCores, in a form of which jaxlib cannot
    read the text: the program is then compiled once more with these on the TensorCore.
    """
    compiled = lowered.compile()
    try:
        return compiled, compiled.as_text() or ""
    except JaxRuntimeError as error:
        if "async-update" not in str(error):
            raise
    compiled = lowered.compile(compiler_options=ON_TENSOR_CORE)
    return compiled, compiled.as_text() or ""


def fit_rows(workload: Workload, mesh: Mesh, where: Topology, step: int) -> Report:
    """The report of the most rows that fit: powers of two times `step`, and those halfway between.

    Args:
      workload: its own `rows` are where the search starts.
      mesh: over the slice's devices.
      where: the slice.
      step: the fewest rows, which the mesh divides.

    Raises:
      CompileError: not even `step` rows fit.
    """

    def attempt(count: int) -> Report:
        changed = dataclasses.replace(workload, rows=count * step)
        return compile_workload(changed, mesh, where)

    # The largest count that fits lies between `low` and `high`, which does not.
    count, low, high = max(workload.rows // step, 1), 0, 0
    best = None
    while not high or high - low > max(low // 2, 1):
        report = attempt(count)
        if report.fits:
            best, low = report, count
        else:
            high = count
        if high == 1:
            raise CompileError(
                f"{workload.name}: not even {step} rows fit; the largest buffers are\n  "
                + "\n  ".join(report.largest)
            )
        count = (low + high) // 2 if high else 2 * low
    assert best is not None
    return best


def largest_buffers(message: str, program: Program, count: int = 5) -> tuple[str, ...]:
    """What the compiler says of a lack of memory, and the largest arguments with their bytes a device."""
    leaves = jax.tree_util.tree_leaves_with_path(program.arguments)
    sized = sorted(((_bytes(leaf), path, leaf) for path, leaf in leaves), key=lambda x: -x[0])
    rows = (
        f"{size / GIB:.2f} GiB a device: argument {jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape}"
        for size, path, leaf in sized[:count]
    )
    return (message.splitlines()[0], *rows)


def _bytes(tree: Any) -> float:
    """Of arrays, on each device; keys and numbers without axes do not count."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        total += math.prod(shape) * jnp.dtype(leaf.dtype).itemsize if shape else 0.0
    return total


def table(reports: Sequence[Report]) -> str:
    """A Markdown table of what matters."""
    lines = [
        "| program | rows | HBM: arguments + outputs + temporaries, beside, GiB a device | of | TFLOP"
        " | traffic, GB | collectives, GB | time, ms | bound |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for it in reports:
        hbm = " + ".join(f"{x / GIB:.2f}" for x in (it.arguments, it.outputs, it.temporaries))
        hbm += f", {it.beside / GIB:.2f}"
        moved = ", ".join(f"{kind} {x / 1e9:.2f}" for kind, x in it.collectives.items()) or "none"
        cells = [it.name, it.rows, hbm if it.fits else "does not fit", f"{it.capacity / GIB:.0f}"]
        cells += [f"{it.flops / 1e12:.2f}", f"{it.memory / 1e9:.1f}", moved]
        cells += [f"{1e3 * it.seconds:.1f}", it.bound if it.fits else "-"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
