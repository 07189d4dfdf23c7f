"""Arms times seeds into a run folder; what is already there is not run again.

<workdir>/<slug>/<scale>/
  config.json  environment.json  summary.json  report.md  report.html
  prepare/seed_<n>/       what the arms of a seed share
  <arm>/seed_<n>/         result.json once the seed is finished
"""

import errno
import json
import math
import os
import platform
import subprocess
import time
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from rewardjax.catalogue import Entry
from rewardjax.experiment import Experiment
from rewardjax.overrides import differences, to_dict
from rewardjax.paths import AnyPath
from rewardjax.report import write_report
from rewardjax.summary import Summary, summarise
from rewardjax.training.cohort import Seat, side_by_side
from rewardjax.training.distributed import from_first, is_first
from rewardjax.training.run import Observer, Run, write_atomic
from rewardjax.verdicts import SEEDS_TO_RECORD

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# A compiled CPU program takes hundreds of memory maps; Linux gives a process 65,530 in all.
MOST_MAPS = 30_000
STORAGE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST),
)


class RunFolderError(ValueError):
    """What the run folder holds cannot be gone on with."""


class ConfigMismatch(RunFolderError):
    """The run folder holds a run with other settings."""


class StorageError(RuntimeError):
    """A file could not be written: the disk is full, or may not be written to."""


def run_folder(entry: Entry, scale: str, workdir: AnyPath) -> AnyPath:
    """Where a run of an experiment is kept."""
    return workdir / entry.slug / scale


def run(
    experiment: Experiment,
    entry: Entry,
    config: Any,
    scale: str,
    arms: Sequence[str],
    seeds: Sequence[int],
    workdir: AnyPath,
    observer: Observer,
    record: bool = False,
    together: bool | None = None,
) -> Summary:
    """Run the arms on the seeds, judge the claims, write the report.

    Seeds are the outer loop, so that an early look compares all arms. A finished seed of an arm is
    skipped; the summary covers every arm that has finished all of `seeds`, also in earlier runs.

    Args:
      experiment: what to run.
      entry: its place.
      config: the settings: one of the experiment's scales, perhaps with overrides.
      scale: the name of the scale, for the folder and the report.
      arms: names of arms.
      seeds: at least one.
      workdir: the folder of all runs.
      observer: who is told how it goes.
      together: run an arm's seeds side by side, as one vmapped program; by default on an accelerator.
      record: also write the summary to `results/<family>/<slug>.json`.

    Raises:
      ConfigMismatch: the folder holds a run with other settings; nothing is written.
      StorageError: the disk is full or may not be written to; the message names the path.
      RunFolderError: its `config.json` or a `result.json` is broken.
      ValueError: an arm is called "prepare".
    """
    if experiment.prepare is not None and "prepare" in experiment.arms:
        raise ValueError("arms: 'prepare' is the folder of what the arms share; rename the arm")
    folder = run_folder(entry, scale, workdir)
    try:
        settings = {
            "experiment": f"{entry.family}/{entry.slug}",
            "scale": scale,
            "config": to_dict(config),
        }
        _check_config(folder, settings)
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "config.json", settings)
        surroundings = environment(entry.path.absolute().parent)
        _write_json(folder / "environment.json", surroundings)
        if together is None:
            together = jax.default_backend() != "cpu" and jax.process_count() == 1
        go = _run_together if together and len(seeds) > 1 else _run_seeds
        go(experiment, config, arms, seeds, folder, observer)
        summary = _summarise(experiment, entry, scale, seeds, folder, surroundings)
        _write_json(folder / "summary.json", summary)
        if is_first():
            write_report(folder)
        if record:
            entry.results.parent.mkdir(parents=True, exist_ok=True)
            _write_json(entry.results, summary)
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        raise StorageError(
            f"cannot write {error.filename or folder}: {error.strerror}; make room or choose "
            "another --workdir: what was finished is kept"
        ) from error
    for message in _warnings(experiment, summary, record):
        observer.warn(entry.slug, message)
    return summary


def environment(folder: Path) -> dict[str, Any]:
    """What a run ran on: Python, packages, hardware, and the commit of the project around `folder`."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "hardware": {
            "device": devices[0].device_kind,
            "devices": len(devices),
            "cpu": _cpu_model(),
            "cores": os.cpu_count() or 1,
        },
        "commit": _commit(folder),
        "platform": platform.platform(),
    }


def _check_config(folder: AnyPath, settings: Mapping[str, Any]) -> None:
    path = folder / "config.json"
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{path}: not JSON: {error}") from error
    changed = differences(before, json.loads(json.dumps(settings)))
    if changed:
        lines = [
            f"  {name.removeprefix('config.')}: {old!r} there, {new!r} here"
            for name, (old, new) in changed.items()
        ]
        raise ConfigMismatch(
            "\n".join([f"{folder} holds a run with other settings:", *lines])
            + "\nchoose another --workdir, or remove that folder to start anew"
        )


def _run_seeds(
    experiment: Experiment,
    config: Any,
    arms: Sequence[str],
    seeds: Sequence[int],
    folder: AnyPath,
    observer: Observer,
) -> None:
    prepare: Any = None
    # Built once: the seeds of an arm share its compiled programs.
    built: dict[str, Any] = {}
    for seed in seeds:
        waiting = []
        for arm in arms:
            result = _read_result(_seed_folder(folder, arm, seed))
            if result is None:
                waiting.append(arm)
            else:
                observer.finished(f"{arm}/seed_{seed}", result["metrics"])
        shared = None
        if waiting and experiment.prepare is not None:
            prepare = prepare or experiment.prepare(config)
            shared = _prepare(prepare, seed, folder, observer)
        for arm in waiting:
            if arm not in built:
                built[arm] = experiment.arms[arm].build(config)
            _run_seed(built[arm], arm, seed, shared, folder, observer)
            _make_room()


def _run_together(
    experiment: Experiment,
    config: Any,
    arms: Sequence[str],
    seeds: Sequence[int],
    folder: AnyPath,
    observer: Observer,
) -> None:
    """As `_run_seeds`, with arms as the outer loop: the seeds of an arm run side by side."""
    waiting: dict[str, list[int]] = {}
    for arm in arms:
        for seed in seeds:
            result = _read_result(_seed_folder(folder, arm, seed))
            if result is None:
                waiting.setdefault(arm, []).append(seed)
            else:
                observer.finished(f"{arm}/seed_{seed}", result["metrics"])
    needed = sorted({seed for waits in waiting.values() for seed in waits})
    shared = dict.fromkeys(needed)
    if waiting and experiment.prepare is not None:
        prepare = experiment.prepare(config)
        found = side_by_side(
            [partial(_prepare, prepare, seed, folder, observer) for seed in needed]
        )
        shared = dict(zip(needed, found, strict=True))
    for arm, waits in waiting.items():
        build = experiment.arms[arm].build(config)
        side_by_side(
            [partial(_run_seed, build, arm, seed, shared[seed], folder, observer) for seed in waits]
        )
        _make_room()


def _make_room() -> None:
    """Drop compiled programs when they are many: those needed again come from the cache on disk."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


def _prepare(
    prepare: Any, seed: int, folder: AnyPath, observer: Observer, seat: Seat | None = None
) -> Any:
    # A key of its own: an arm that draws from the seed's key must not repeat these draws.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"prepare"))
    place = _seed_folder(folder, "prepare", seed)
    with Run(place, seed, "prepare", observer=observer, key=key, seat=seat) as handle:
        started = time.monotonic()
        shared = prepare(handle)
        handle.perf(0, {"seconds": time.monotonic() - started})
    return shared


def _run_seed(
    run_seed: Any,
    arm: str,
    seed: int,
    shared: Any,
    folder: AnyPath,
    observer: Observer,
    seat: Seat | None = None,
) -> None:
    place = _seed_folder(folder, arm, seed)
    started = time.monotonic()
    with Run(place, seed, arm, observer=observer, seat=seat) as handle:
        try:
            metrics = _checked(run_seed(handle, shared), handle)
        except Exception as error:
            error.add_note(f"in arm {arm!r}, seed {seed} ({place})")
            raise
    seconds = time.monotonic() - started
    result = {"arm": arm, "seed": seed, "metrics": metrics, "seconds": round(seconds, 3)}
    _write_json(place / "result.json", result)
    observer.finished(handle.label, metrics)


def _checked(metrics: Any, handle: Run) -> dict[str, float | None]:
    """An arm's results as finite numbers or None."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"expected a mapping of metrics, found {type(metrics).__name__}")
    checked: dict[str, float | None] = {}
    for name, value in metrics.items():
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"metric {name!r}: expected a number, found {value!r}") from error
        checked[str(name)] = number if math.isfinite(number) else None
        if not math.isfinite(number):
            handle.warn(f"the result {name!r} is not finite")
    return checked


def _summarise(
    experiment: Experiment,
    entry: Entry,
    scale: str,
    seeds: Sequence[int],
    folder: AnyPath,
    surroundings: Mapping[str, Any],
) -> Summary:
    values: dict[str, dict[str, list[float | None]]] = {}
    seconds = 0.0
    for arm in experiment.arms:
        found = [_read_result(_seed_folder(folder, arm, seed)) for seed in seeds]
        results = [result for result in found if result is not None]
        if len(results) == len(seeds):
            names = dict.fromkeys(name for result in results for name in result["metrics"])
            values[arm] = {
                name: [result["metrics"].get(name) for result in results] for name in names
            }
            seconds += sum(result["seconds"] for result in results)
    hardware = surroundings["hardware"]
    return summarise(
        experiment,
        values,
        slug=entry.slug,
        family=entry.family,
        scale=scale,
        seeds=list(seeds),
        seconds=round(seconds, 1),
        hardware=f"{hardware['devices']} x {hardware['device']}, {hardware['cpu']}, "
        f"{hardware['cores']} cores",
        versions={"python": surroundings["python"], **surroundings["packages"]},
        commit=surroundings["commit"],
    )


def _warnings(experiment: Experiment, summary: Summary, record: bool) -> list[str]:
    """What the reader of a summary should doubt."""
    arms, messages = summary["arms"], []
    for name in dict.fromkeys(name for metrics in arms.values() for name in metrics):
        cells = [metrics[name]["values"] for metrics in arms.values() if name in metrics]
        numbers = [number for cell in cells for number in cell]
        if len(numbers) > 1 and len(set(numbers)) == 1:
            messages.append(
                f"{name} never changed: it is {numbers[0]} in every arm and seed; "
                "is it measured at all?"
            )
    if len(summary["seeds"]) == 1 and summary["claims"]:
        messages.append("the claims are judged from one seed: inconclusive, whatever they say")
    if record and len(summary["seeds"]) < SEEDS_TO_RECORD:
        messages.append(
            f"recorded {len(summary['seeds'])} seeds; a verdict needs {SEEDS_TO_RECORD}"
        )
    missing = [arm for arm in experiment.arms if arm not in arms]
    if record and missing:
        messages.append(f"recorded without the arms {', '.join(missing)}")
    return messages


def _seed_folder(folder: AnyPath, arm: str, seed: int) -> AnyPath:
    return folder / arm / f"seed_{seed}"


def _read_result(place: AnyPath) -> dict[str, Any] | None:
    """A finished seed's result; None if it is not finished. All processes see the same."""
    path = place / "result.json"
    text = from_first(path.read_text(encoding="utf-8") if is_first() and path.exists() else None)
    if text is None:
        return None
    try:
        result = json.loads(text)
        return {"metrics": dict(result["metrics"]), "seconds": float(result["seconds"])}
    except (ValueError, TypeError, KeyError) as error:
        raise RunFolderError(
            f"{path}: expected a finished seed's metrics and seconds ({error!r}); "
            "remove the file to run the seed again"
        ) from error


def _write_json(path: AnyPath, content: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit(folder: Path) -> str:
    """The commit, with "+changes" if files differ from it; empty where there is none."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return f"{head}+changes" if _git(folder, "status", "--porcelain") else head
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
