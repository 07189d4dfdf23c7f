"""The command line: `rewardjax run | list | report | prepare | evaluate | compile | launch`.

Exit codes: 0 done, 1 an experiment or a disk failed, 2 a mistake in the command, 75 a service did not
answer, 130 interrupted by Ctrl-C, 143 told to stop by SIGTERM. After the last three what was done is
saved, and the same command goes on from there. 130 and 143 are what a shell reports for a process that
the signal ends, so that a scheduler needs one rule for both. `launch` exits with the code of what it
started; `compile` with 1 where a program does not fit.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardjax import __version__, launch_cli
from rewardjax.compilation import command
from rewardjax.evaluation import command as protocol_command
from rewardjax.launch import TEMPLATES

if TYPE_CHECKING:
    from rewardjax.catalogue import Entry
    from rewardjax.experiment import Experiment
    from rewardjax.paths import AnyPath

# jax, matplotlib and rich are imported where they are used, so that --help answers at once.


class UsageError(ValueError):
    """A name on the command line that does not exist."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is returned, errors of the user's are a line on stderr."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:
        # argparse has said its piece; the caller decides whether to leave.
        return stop.code if isinstance(stop.code, int) else 2
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rewardjax", description="Run a paper's experiment, list experiments, report runs."
    )
    parser.add_argument("--version", action="version", version=f"rewardjax {__version__}")
    commands = parser.add_subparsers(
        required=True, metavar="run | list | report | prepare | evaluate | compile | launch"
    )

    run = commands.add_parser("run", help="run an experiment's arms over seeds, or go on with it")
    run.set_defaults(command=_run)
    _experiment_options(run)
    run.add_argument("--workdir", type=_folder, default=Path("runs"), help="default: runs")
    run.add_argument(
        "--record", action="store_true", help="also write results/<family>/<slug>.json"
    )
    run.add_argument(
        "--together",
        action=argparse.BooleanOptionalAction,
        help="run an arm's seeds as one vmapped program (default: on an accelerator)",
    )
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    run.add_argument("--json", action="store_true", help="print the summary as JSON")

    start = commands.add_parser("launch", help="run on a cluster, a TPU pod or several processes")
    start.set_defaults(command=launch_cli.launch)
    start.add_argument("target", choices=tuple(TEMPLATES), help="where to run")
    _experiment_options(start)
    start.add_argument("--workdir", default="runs", help="as all hosts see it (default: runs)")
    launch_cli.add_flags(start)

    ahead = commands.add_parser("compile", help="compile a scale's programs for a TPU slice")
    ahead.set_defaults(command=command.compile_command)
    command.add_flags(ahead)

    listing = commands.add_parser("list", help="list the experiments")
    listing.set_defaults(command=_list)
    listing.add_argument("--family", help="only this family")
    listing.add_argument("--json", action="store_true", help="print a JSON array")

    report = commands.add_parser("report", help="write and print the reports of finished runs")
    report.set_defaults(command=_report)
    report.add_argument("folders", nargs="*", type=_folder, metavar="DIR", help="default: runs")
    report.add_argument("--json", action="store_true", help="print a JSON array of summaries")

    prepare = commands.add_parser("prepare", help="write preferences as a TFDS data set")
    prepare.set_defaults(command=_prepare)
    prepare.add_argument("data", metavar="SPEC", help="hh:DIR, alpaca:DIR or jsonl:FILE")
    prepare.add_argument("name", metavar="NAME@DATA_DIR", help="the data set and TFDS's folder")
    prepare.add_argument("--on-bad-record", choices=("raise", "skip"), help="as for run")

    scores = commands.add_parser(
        "evaluate", help="apply an evaluation protocol to a file of scores"
    )
    scores.set_defaults(command=protocol_command.evaluate_command)
    protocol_command.add_flags(scores)
    return parser


def _experiment_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="FILE_OR_SLUG", help="file, family/slug or slug")
    parser.add_argument("--scale", default="mini", help="mini, smoke or paper (default: mini)")
    parser.add_argument(
        "--arms", metavar="A,B", help="arms, or all (default: the experiment's own)"
    )
    parser.add_argument("--seeds", type=_count, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="DOTTED.KEY=VALUE",
        help="change a setting of the scale; may be repeated",
    )
    parser.add_argument(
        "--on-bad-record",
        choices=("raise", "skip"),
        help="stop at a record that cannot be read, or leave it out and count it "
        "(default: as the data's reader says)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from rewardjax import catalogue, progress, runner, terminal
    from rewardjax.overrides import OverrideError, override
    from rewardjax.services import ServiceUnavailable
    from rewardjax.training.distributed import JoinError, initialise, is_first
    from rewardjax.training.signals import Terminated, terminable

    try:
        initialise()
        entry, experiment = catalogue.load(arguments.experiment)
        scale = _known("scale", arguments.scale, experiment.scales)
        config = override(experiment.scales[scale], arguments.settings)
        config = override(config, _on_bad_record(config, arguments.on_bad_record))
        arms = _arms(arguments.arms, experiment, config)
    except JoinError as error:
        return _fail(error, 1)
    except (catalogue.CatalogueError, OverrideError, UsageError) as error:
        return _fail(error, 2)
    _keep_compiled_programs()
    seeds = range(arguments.seeds or experiment.first_seeds)
    quiet = arguments.quiet or arguments.json or not is_first()
    observer = progress.observer(len(arms) * len(seeds), quiet=quiet)
    folder = runner.run_folder(entry, scale, arguments.workdir)
    try:
        with terminable(), observer:
            summary = runner.run(
                experiment,
                entry,
                config,
                scale,
                arms,
                seeds,
                arguments.workdir,
                observer,
                record=arguments.record,
                together=arguments.together,
            )
    except KeyboardInterrupt as stop:
        told = "told to stop" if isinstance(stop, Terminated) else "interrupted"
        print(
            f"{told}: what was done is saved in {folder}; "
            "type the same command again to go on from there",
            file=sys.stderr,
        )
        return 143 if isinstance(stop, Terminated) else 130
    except ServiceUnavailable as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        return _fail(
            f"{error}{notes}\n  paused: what was done is saved in {folder}; type the same command again"
            " to go on from there",
            75,
        )
    except runner.RunFolderError as error:
        return _fail(error, 2)
    except runner.StorageError as error:
        return _fail(error, 1)
    except (ValueError, ArithmeticError, FileNotFoundError) as error:
        return _stopped(error, folder)
    if not is_first():
        return 0
    if arguments.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return 0
    _print(terminal.tables(summary))
    print(f"report: {folder / 'report.html'}")
    if arguments.record:
        print(f"recorded: {entry.results}")
    return 0


def _stopped(error: Exception, folder: "AnyPath") -> int:
    """Data or settings that cannot be used, numbers that are not finite: what, and where to look."""
    import traceback

    trace = folder / "error.txt"
    trace.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
    return _fail(f"{error}{notes}\n  traceback: {trace}", 1)


def _list(arguments: argparse.Namespace) -> int:
    from rewardjax import catalogue

    experiments: list[dict[str, Any]] = []
    broken = 0
    try:
        root = catalogue.experiments_folder()
        for entry, experiment in catalogue.load_all(root, arguments.family):
            if isinstance(experiment, Exception):
                broken += 1
                _fail(f"{entry.path}: {type(experiment).__name__}: {experiment}", 1)
            else:
                experiments.append(_described(entry, experiment))
    except catalogue.CatalogueError as error:
        return _fail(error, 2)
    if arguments.json:
        print(json.dumps(experiments, indent=2, ensure_ascii=False))
    else:
        _print(_table(experiments))
    return 1 if broken else 0


def _report(arguments: argparse.Namespace) -> int:
    from rewardjax import report, terminal
    from rewardjax.summary import read_summary

    summaries = []
    try:
        for folder in _run_folders(arguments.folders or [Path("runs")]):
            if not (folder / "summary.json").is_file():
                print(f"{folder}: not finished; run it again to go on with it", file=sys.stderr)
                continue
            page = report.write_report(folder)
            summary = read_summary(folder / "summary.json")
            summaries.append(summary)
            if not arguments.json:
                _print(terminal.tables(summary))
                print(f"report: {page}\n")
    except ValueError as error:
        return _fail(error, 2)
    except OSError as error:
        return _fail(error, 1)
    if arguments.json:
        print(json.dumps(summaries, indent=2, ensure_ascii=False))
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from rewardjax.data.formats import open_preferences
    from rewardjax.data.tfds import prepare_preferences

    name, at, data_dir = arguments.name.partition("@")
    if not (name and at and data_dir):
        return _fail(f"expected NAME@DATA_DIR, found {arguments.name!r}", 2)
    try:
        splits = {}
        for split in ("train", "test"):
            loaded = open_preferences(arguments.data, split, arguments.on_bad_record)
            splits[split] = loaded.records
            skipped = "".join(f"; left out {n}: {why}" for why, n in loaded.skipped.items())
            print(f"{split}: {len(loaded.records)} records{skipped}")
        prepare_preferences(splits, name, data_dir)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        return _fail(error, 2)
    print(f"use it as data=tfds:{arguments.name}")
    return 0


def _run_folders(folders: Iterable["AnyPath"]) -> list["AnyPath"]:
    """The run folders at or under the given ones: those that hold a config.json or a summary."""
    found: dict[AnyPath, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder of runs")
        # <slug>/<scale> is the deepest that a run folder can be below a working folder.
        marks = [
            path.parent
            for depth in ("", "*/", "*/*/")
            for name in ("config.json", "summary.json")
            for path in sorted(folder.glob(depth + name))
        ]
        if not marks:
            raise UsageError(f"{folder}: no run in it: expected <slug>/<scale>/summary.json")
        found.update(dict.fromkeys(marks))
    return list(found)


def _on_bad_record(config: Any, choice: str | None) -> list[str]:
    """The setting, wherever the configuration has it."""
    from rewardjax.overrides import dotted_names

    if choice is None:
        return []
    found = [name for name in dotted_names(config) if name.split(".")[-1] == "on_bad_record"]
    if not found:
        raise UsageError("--on-bad-record: this experiment reads no records")
    return [f"{name}={choice}" for name in found]


def _arms(names: str | None, experiment: "Experiment", config: Any) -> list[str]:
    """The arms to run: those named, or those of the first (or all) that apply to `config`."""
    reasons = _inapplicable(experiment, config)
    if names is not None and names != "all":
        arms = [_known("arm", name, experiment.arms) for name in names.split(",")]
        for arm in arms:
            if arm in reasons:
                raise UsageError(reasons[arm])
        return list(dict.fromkeys(arms))
    first = experiment.first_arms if names is None else ()
    arms = [arm for arm in first or experiment.arms if arm not in reasons]
    if not arms:
        raise UsageError("; ".join(reasons.values()))
    return arms


def _inapplicable(experiment: "Experiment", config: Any) -> Mapping[str, str]:
    if experiment.inapplicable is None:
        return {}
    try:
        return experiment.inapplicable(config)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error


def _known(kind: str, name: str, known: Iterable[str]) -> str:
    from rewardjax.overrides import near_names

    name, known = name.strip(), list(known)
    if name not in known:
        raise UsageError(f"no {kind} {name!r}; {near_names(name, known)}")
    return name


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected a number from 1, found {text!r}")
    return int(text)


def _folder(text: str) -> "AnyPath":
    """A folder or an address, which is looked at once: its driver may not be installed."""
    from rewardjax.paths import path_of

    try:
        path = path_of(text)
        if "://" in text:
            path.exists()
    except (ValueError, ImportError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def _described(entry: "Entry", experiment: "Experiment") -> dict[str, Any]:
    return {
        "slug": entry.slug,
        "family": entry.family,
        "title": experiment.paper.title,
        "arxiv": experiment.paper.arxiv,
        "arms": list(experiment.arms),
        "scales": list(experiment.scales),
        "claims": [dict(vars(claim)) for claim in experiment.claims],
        "recorded": entry.results.is_file(),
    }


def _table(experiments: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("family", "slug", "title", "arms", "recorded")
    for it in experiments:
        row = (it["family"], it["slug"], it["title"], ", ".join(it["arms"]))
        table.add_row(*map(Text, row), Text("yes" if it["recorded"] else ""))
    return table


def _keep_compiled_programs() -> None:
    """Keep compiled programs between runs, in $REWARDJAX_CACHE or the user's cache folder."""
    import jax

    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = os.environ.get("REWARDJAX_CACHE") or str(caches / "rewardjax" / "jax")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _print(drawing: Any) -> None:
    from rich.console import Console

    Console().print(drawing)


def _fail(error: Exception | str, code: int) -> int:
    print(f"rewardjax: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
