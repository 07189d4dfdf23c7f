"""A run's handle on the outside world: its folder, its key, its logs.

What a seed logs is a function of its step alone: `metrics.jsonl` and `samples.jsonl` hold no time
and no date, so a run that was cut off and resumed leaves the same bytes as one that was not.
Timings go to `perf.jsonl`. Of several processes the first alone writes and tells the observer.

An object store has no appending and no renaming: a file there is always written as a whole, which is
atomic. TensorBoard's events are left out there; `metrics.jsonl` has the same numbers.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array

from rewardjax.paths import AnyPath, absolute
from rewardjax.pictures import png
from rewardjax.training.cohort import Seat
from rewardjax.training.distributed import from_first, is_first

# Rows kept in memory before they are written, so that a run can be watched as it goes.
BUFFERED_ROWS = 100


@runtime_checkable
class Observer(Protocol):
    """Who is told how a run goes; `label` says which run ("dpo/seed_0/policy")."""

    def progress(self, label: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """`done` of `total` steps are done."""

    def warn(self, label: str, message: str) -> None:
        """Something that the reader of the results should know."""

    def finished(self, label: str, metrics: Mapping[str, float | None]) -> None:
        """A seed of an arm is done (or was already); these are its results."""


class Silent:
    """The observer that tells nobody."""

    def progress(self, label: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def warn(self, label: str, message: str) -> None:
        """Nothing."""

    def finished(self, label: str, metrics: Mapping[str, float | None]) -> None:
        """Nothing."""


class Run:
    """One seed of one arm, or one stage of it: a folder, a key and its logs.

    A context manager: leaving it writes what was logged, also after an error.

    Attributes:
      folder: where the run may write; absolute, made on creation.
      seed: the seed; the arms of an experiment share it.
      arm: the arm's name.
      label: the name that the observer is told.
      key: `jax.random.key(seed)`, or the stage's share of it.
      observer: who is told about progress and warnings.
      seat: the seed's place among others that run beside it, if they do.
    """

    def __init__(
        self,
        folder: AnyPath,
        seed: int = 0,
        arm: str = "",
        *,
        observer: Observer | None = None,
        key: Array | None = None,
        label: str | None = None,
        seat: "Seat | None" = None,
    ) -> None:
        self.folder = absolute(folder)
        self.seed = seed
        self.arm = arm
        self.observer: Observer = observer if observer is not None and is_first() else Silent()
        self.key = jax.random.key(seed) if key is None else key
        self.label = f"{arm}/seed_{seed}" if label is None else label
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seat = seat
        self._stages: dict[str, Run] = {}
        self._buffers: dict[str, list[str]] = {}
        self._trimmed: set[str] = set()
        self._warned: set[str] = set()
        self._writer: Any = None

    def stage(self, name: str) -> "Run":
        """A part of the run ("sft", "reward_model") with its own folder, key and logs.

        The same name gives the same stage. Its key depends on the run's key and the name alone,
        not on the order of the calls.
        """
        if name not in self._stages:
            self._stages[name] = Run(
                self.folder / name,
                self.seed,
                self.arm,
                observer=self.observer,
                key=jax.random.fold_in(self.key, zlib.crc32(name.encode())),
                label=f"{self.label}/{name}",
                seat=self.seat,
            )
        return self._stages[name]

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append the row `{"step": step, **metrics}` to `metrics.jsonl` and to TensorBoard's events.

        Values are scalars. One that is not finite is written as null, with a warning. The first
        row of this object drops the rows from `step` on that an interrupted attempt left.
        """
        numbers = {name: float(value) for name, value in metrics.items()}
        for name, number in numbers.items():
            if not math.isfinite(number):
                self.warn(f"{name} is not finite in some steps; it is logged as null")
        finite = {name: number for name, number in numbers.items() if math.isfinite(number)}
        row = {"step": int(step), **{name: finite.get(name) for name in numbers}}
        self._append("metrics.jsonl", int(step), [row])
        self._events(int(step), finite)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append `{"step": step, **row}` for each row to `samples.jsonl`; as `log` otherwise."""
        self._append("samples.jsonl", int(step), [{"step": int(step), **row} for row in rows])

    def picture(self, name: str, image: np.ndarray) -> None:
        """Write an image to `pictures/<name>.png`; a picture of the same name is replaced.

        Args:
          name: a file's name without its ending.
          image: uint8 or floats in [0, 1], `[height, width]` or `[height, width, 3]`.
        """
        path = self.folder / "pictures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, png(image))

    def perf(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append timings (seconds, tokens a second, bytes) to `perf.jsonl`, which is never rewound."""
        row = {"step": int(step), **{name: float(value) for name, value in metrics.items()}}
        self._buffer("perf.jsonl", [row])

    def history(self, name: str) -> np.ndarray:
        """Every logged value of one metric, in the order of the steps; null is NaN.

        Raises:
          KeyError: the metric was never logged.
        """
        self.flush()
        path = self.folder / "metrics.jsonl"
        found: list[float | None] = []
        if is_first() and path.exists():
            rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            found = [row[name] for row in rows if name in row]
        found = from_first(found)
        if not found:
            raise KeyError(f"{path}: no metric {name!r} was logged")
        return np.asarray(found, dtype=np.float64)

    def rewind(self, step: int) -> None:
        """Drop the logged rows with a step greater than `step`: call it after restoring `step`.

        A last line that was cut off in writing is dropped too.

        Raises:
          ValueError: another line is broken; the message names file and line.
        """
        self.flush()
        self._close_writer()
        for name in ("metrics.jsonl", "samples.jsonl"):
            self._trim(name, step)

    def warn(self, message: str) -> None:
        """Tell the observer and `warnings.log`, once for each distinct message."""
        if message in self._warned:
            return
        self._warned.add(message)
        append_text(self.folder / "warnings.log", message + "\n")
        self.observer.warn(self.label, message)

    def progress(self, done: int, total: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Tell the observer that `done` of `total` steps are done, with the latest metrics."""
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        self.observer.progress(self.label, done, total, numbers)

    def flush(self) -> None:
        """Write what is buffered, here and in the stages: call it before saving a checkpoint."""
        for name, lines in self._buffers.items():
            if lines:
                append_text(self.folder / name, "".join(lines))
                lines.clear()
        if self._writer is not None:
            self._writer.flush()
        for stage in self._stages.values():
            stage.flush()

    def close(self) -> None:
        """Write what is buffered and close the event files, here and in the stages."""
        self.flush()
        self._close_writer()
        for stage in self._stages.values():
            stage.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if name not in self._trimmed:
            self._trim(name, step - 1)
        self._buffer(name, rows)

    def _buffer(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        lines = self._buffers.setdefault(name, [])
        lines.extend(json.dumps(row, default=_plain, ensure_ascii=False) + "\n" for row in rows)
        if len(lines) >= BUFFERED_ROWS:
            append_text(self.folder / name, "".join(lines))
            lines.clear()

    def _trim(self, name: str, step: int) -> None:
        """Keep the rows of a file up to `step`; the file is touched only if it has others."""
        self._trimmed.add(name)
        path = self.folder / name
        if not (is_first() and path.exists()):
            return
        text = path.read_bytes().decode("utf-8", errors="replace")
        # Not splitlines(): it would also cut at the line separators that a sample may hold.
        *lines, torn = text.split("\n")
        kept = "".join(
            f"{line}\n"
            for number, line in enumerate(lines, start=1)
            if _step(path, number, line) <= step
        )
        if torn or kept != text:
            write_atomic(path, kept)

    def _events(self, step: int, metrics: Mapping[str, float]) -> None:
        if not (is_first() and isinstance(self.folder, Path)):
            return
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # Events of an interrupted attempt from this step on are hidden by the reader.
            resumed = any(self.folder.glob("events.out.tfevents.*"))
            self._writer = SummaryWriter(str(self.folder), purge_step=step if resumed else None)
        for name, number in metrics.items():
            self._writer.add_scalar(name, number, step)

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def write_atomic(path: AnyPath, content: str | bytes) -> None:
    """Write a file whole or not at all: a reader never sees half of it. Only process 0 writes.

    Raises:
      OSError: it could not be written; `filename` is the path.
    """
    if not is_first():
        return
    data = content.encode() if isinstance(content, str) else content
    if not isinstance(path, Path):
        path.write_bytes(data)
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def append_text(path: AnyPath, text: str) -> None:
    """Append to a file. Only process 0 writes.

    Raises:
      OSError: it could not be written; `filename` is the path.
    """
    if not is_first():
        return
    if not isinstance(path, Path):
        path.write_text((path.read_text() if path.exists() else "") + text)
        return
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        # A full disk is noticed in write(), whose error does not say which file it was.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _step(path: AnyPath, number: int, line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{path}:{number}: expected an object with a "step", found {line[:40]!r}'
        ) from error


def _plain(value: Any) -> Any:
    """A NumPy or JAX value as JSON has it."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, AnyPath):
        return str(value)
    raise TypeError(f"a sample cannot hold a {type(value).__name__}: {value!r}")
