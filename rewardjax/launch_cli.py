"""`rewardjax launch`: its flags, and starting what `rewardjax.launch` renders."""

import argparse
import dataclasses
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from rewardjax.launch import MOUNT, PROGRAMS, Job, LaunchError, render, starter, templates_folder
from rewardjax.tpu_slices import TopologyError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `launch` beside those of `run`."""
    defaults = {field.name: field.default for field in dataclasses.fields(Job)}

    def flag(name: str, metavar: str, what: str, kind=str) -> None:
        value = defaults[name]
        shown = f"{what} (default: {value})" if value else what
        parser.add_argument(f"--{name}", type=kind, default=value, metavar=metavar, help=shown)

    parser.add_argument("--name", help="of the job (default: rewardjax- and the experiment's)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, only")
    flag("attempts", "N", "starts after a preemption", int)
    flag("topology", "GENERATION:AxB", "tpu, gke: of a slice")
    flag("slices", "N", "tpu, gke: slices joined by the data-centre network", int)
    parser.add_argument("--spot", action="store_true", help="tpu, gke: preemptible capacity")
    flag("zone", "ZONE", "tpu: the zone; gcloud's default without it")
    flag("project", "PROJECT", "tpu: the project; gcloud's default without it")
    flag("image", "IMAGE", "gke: a container with rewardjax installed")
    flag("nodes", "N", "slurm: machines", int)
    flag("gpus", "N", "slurm: of a node", int)
    parser.add_argument(
        "--task",
        choices=("node", "gpu"),
        default="node",
        help="slurm: one process a (default: node)",
    )
    flag("time", "HH:MM:SS", "slurm: the time limit")
    flag("processes", "N", "host: processes", int)


def launch(arguments: argparse.Namespace) -> int:
    """Start a job, or print it; returns the exit code of what was started, 2 for a mistake."""
    import rewardjax
    from rewardjax import catalogue

    target = arguments.target
    try:
        entry = catalogue.locate(arguments.experiment)
        job = _job(arguments, entry.slug)
        text = render(target, job, templates_folder(Path(rewardjax.__file__).parent))
        command, standard_input = starter(target, text)
        if not arguments.dry_run:
            _check_installed(target)
    except (catalogue.CatalogueError, LaunchError, TopologyError) as error:
        print(f"rewardjax: error: {error}", file=sys.stderr)
        return 2
    if arguments.dry_run:
        shown = shlex.join(command) if standard_input else "bash"
        print(f"would run `{shown}` with this:", file=sys.stderr)
        print(text, end="")
        return 0
    code = _run(command, standard_input)
    print(f"rewardjax: {target}: {command[0]} ended with exit code {code}", file=sys.stderr)
    return code


def _job(arguments: argparse.Namespace, slug: str) -> Job:
    given = vars(arguments)
    names = {field.name for field in dataclasses.fields(Job)} & given.keys() - {
        "command",
        "name",
        "bucket",
    }
    name = arguments.name or "rewardjax-" + re.sub("[^a-z0-9]+", "-", slug.lower()).strip("-")[:30]
    bucket, workdir = _workdir(arguments.target, arguments.workdir)
    return Job(
        command=_run_command(arguments, workdir),
        name=name.rstrip("-"),
        bucket=bucket,
        port=_free_port(),
        **{name: given[name] for name in names},
    )


def _workdir(target: str, given: str) -> tuple[str, str]:
    """The bucket to mount ("" for none), and the folder as the hosts see it."""
    found = re.fullmatch(r"gs://([^/]+)/*(.*)", given)
    if target in ("tpu", "gke"):
        if found:
            return found[1], f"{MOUNT}/{found[2]}"
        expected, fits = (
            "gs://bucket/folder or a folder mounted on every host",
            given.startswith("/"),
        )
    else:
        expected, fits = "a folder that all processes see", "://" not in given
    if not fits:
        raise LaunchError(f"--workdir: expected {expected}, found {given!r}")
    return "", given


def _run_command(arguments: argparse.Namespace, workdir: str) -> tuple[str, ...]:
    words = ["rewardjax", "run", arguments.experiment, "--scale", arguments.scale]
    for flag in ("arms", "seeds", "on_bad_record"):
        value = getattr(arguments, flag)
        if value is not None:
            words += [f"--{flag.replace('_', '-')}", str(value)]
    for setting in arguments.settings:
        words += ["--set", setting]
    return (*words, "--workdir", workdir, "--quiet")


def _check_installed(target: str) -> None:
    missing = [program for program in PROGRAMS[target] if shutil.which(program) is None]
    if missing:
        raise LaunchError(
            f"{target}: {', '.join(missing)} not found: install it, or use --dry-run"
            " and start what is printed where it is"
        )


def _run(command, standard_input: str | None) -> int:
    """Run to the end; signals are the child's business, which may have a checkpoint to write."""
    child = subprocess.Popen(
        command, stdin=None if standard_input is None else subprocess.PIPE, text=True
    )
    passed_on = signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
    # The terminal sends Ctrl-C to the child as well.
    ignored = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        child.communicate(standard_input)
    finally:
        signal.signal(signal.SIGTERM, passed_on)
        signal.signal(signal.SIGINT, ignored)
    # A child that a signal ended: as a shell reports it.
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
