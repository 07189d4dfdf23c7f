"""`rewardjax compile`: the device programs of an experiment, compiled for a slice that is not there."""

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rewardjax.compilation.chips import CompileError, Topology, tpu_topology

if TYPE_CHECKING:
    from rewardjax.catalogue import Entry
    from rewardjax.compilation.program import Report, Workload
    from rewardjax.experiment import Experiment
    from rewardjax.training.sharding import MeshConfig


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `compile`."""
    parser.add_argument("experiment", nargs="?", help="file, family/slug or slug")
    parser.add_argument("--all", action="store_true", help="every experiment that has programs")
    parser.add_argument("--scale", default="paper", help="default: paper")
    parser.add_argument(
        "--topology", metavar="GENERATION:AxB", help="such as v5e:4x4 (default: the experiment's)"
    )
    parser.add_argument(
        "--mesh",
        metavar="data=N,tensor=N,sequence=N",
        help="default: the scale's; fsdp takes the rest",
    )
    parser.add_argument("--programs", metavar="A,B", help="only these")
    parser.add_argument(
        "--fit", choices=("batch",), help="search the most rows that fit, instead of the scale's"
    )
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="DOTTED.KEY=VALUE"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def compile_command(arguments: argparse.Namespace) -> int:
    """Compile and report; 0 where all fits, 1 where something does not, 2 for a mistake."""
    # The compiler alone is wanted, not the TPUs of this machine; jax reads this when it is imported.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from rewardjax import catalogue
    from rewardjax.overrides import OverrideError

    fitted, found = True, []
    try:
        if arguments.all == bool(arguments.experiment):
            raise CompileError("expected an experiment, or --all")
        for entry, experiment in _chosen(arguments):
            result = _compile(arguments, entry, experiment)
            found.append(result)
            fitted &= all(program["fits"] for program in result["programs"])
    except (catalogue.CatalogueError, OverrideError, ValueError) as error:
        print(f"rewardjax: error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(found, indent=2))
    return 0 if fitted else 1


def _chosen(arguments: argparse.Namespace) -> Iterator[tuple["Entry", "Experiment"]]:
    from rewardjax import catalogue

    if not arguments.all:
        entry, experiment = catalogue.load(arguments.experiment)
        if experiment.workloads is None:
            raise CompileError(f"{entry.slug} declares no device programs of full size")
        yield entry, experiment
        return
    for entry, found in catalogue.load_all(catalogue.experiments_folder()):
        if isinstance(found, Exception):
            raise CompileError(f"{entry.path}: {found}")
        if found.workloads is not None:
            yield entry, found


def _compile(
    arguments: argparse.Namespace, entry: "Entry", experiment: "Experiment"
) -> dict[str, Any]:
    from rewardjax.compilation.program import check_mesh, table
    from rewardjax.overrides import override
    from rewardjax.partitioning import RULES
    from rewardjax.training.sharding import make_mesh

    if arguments.scale not in experiment.scales:
        raise CompileError(
            f"{entry.slug}: scale: expected one of {', '.join(experiment.scales)},"
            f" found {arguments.scale!r}"
        )
    config = override(experiment.scales[arguments.scale], arguments.settings)
    name = arguments.topology or experiment.topology
    where = tpu_topology(name)
    wanted = mesh_for(config, len(where.devices), arguments.mesh)
    mesh = make_mesh(wanted, where.devices)
    if mesh is None:
        raise CompileError(f"topology: expected several devices, found {name!r}")
    assert experiment.workloads is not None
    workloads = _selected(experiment.workloads(config), arguments.programs)
    title = f"{entry.slug} ({arguments.scale}) on {name}, {wanted}"
    print(title, file=sys.stderr)
    for workload in workloads:
        rows = workload.rows if arguments.fit is None else mesh.shape["data"] * mesh.shape["fsdp"]
        check_mesh(dataclasses.replace(workload, rows=rows), mesh.shape, RULES)
    reports = [_report(workload, mesh, where, arguments.fit) for workload in workloads]
    if not arguments.json:
        print(f"\n{title}\n\n{table(reports)}")
    return {
        "experiment": entry.slug,
        "scale": arguments.scale,
        "topology": name,
        "mesh": dataclasses.asdict(wanted),
        "programs": [report.as_json() for report in reports],
    }


def _selected(workloads: Any, names: str | None) -> list["Workload"]:
    known = {it.name: it for it in workloads}
    if names is None:
        return list(known.values())
    for name in names.split(","):
        if name not in known:
            raise CompileError(f"--programs: expected some of {', '.join(known)}, found {name!r}")
    return [known[name] for name in names.split(",")]


def _report(workload: "Workload", mesh: Any, where: Topology, fit: str | None) -> "Report":
    from rewardjax.compilation.program import compile_workload, fit_rows

    if fit is None:
        report = compile_workload(workload, mesh, where)
    else:
        report = fit_rows(workload, mesh, where, mesh.shape["data"] * mesh.shape["fsdp"])
    state = "fits" if report.fits else "does not fit:\n  " + "\n  ".join(report.largest)
    print(
        f"  {report.name}, {report.rows} rows, compiled in {report.compile_seconds:.0f} s: {state}",
        file=sys.stderr,
    )
    return report


def mesh_for(config: Any, devices: int, wanted: str | None) -> "MeshConfig":
    """A mesh over all devices: the axes of a configuration or of `wanted`, `fsdp` what is left.

    Args:
      config: its first mesh of several devices is taken, if it has one at any depth.
      devices: of the slice.
      wanted: such as "data=2,tensor=4"; an axis that it leaves out is 1, `fsdp` what is left.

    Raises:
      CompileError: `wanted` is not of that form, or the axes do not divide the devices.
    """
    from rewardjax.partitioning import MESH_AXES
    from rewardjax.training.sharding import MeshConfig

    base = next(_meshes(config), MeshConfig())
    sizes = {name: getattr(base, name) for name in MESH_AXES if name != "fsdp"}
    if wanted is not None:
        sizes = dict.fromkeys(sizes, 1)
        for part in wanted.split(","):
            axis, _, size = part.partition("=")
            if axis not in MESH_AXES or not size.isdigit() or int(size) < 1:
                raise CompileError(
                    f"--mesh: expected such as data=1,fsdp=4,tensor=4, found {part!r}"
                )
            sizes[axis] = int(size)
    rest, over = divmod(devices, math.prod(n for axis, n in sizes.items() if axis != "fsdp"))
    if over or sizes.get("fsdp", rest) != rest:
        raise CompileError(f"mesh: {sizes} does not divide the {devices} devices of the slice")
    return MeshConfig(**{**sizes, "fsdp": rest})


def _meshes(config: Any) -> Iterator["MeshConfig"]:
    from rewardjax.training.sharding import MeshConfig

    if isinstance(config, MeshConfig):
        if config != MeshConfig():
            yield config
    elif dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            yield from _meshes(getattr(config, field.name))
