"""What a run shows in a terminal: a bar for the whole, a bar for the stage, a line of metrics."""

import sys
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SHOWN_METRICS = 5


class Lines:
    """The observer for logs and scripts: nothing but warnings, one a line, on standard error."""

    def progress(self, label: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Not shown."""

    def warn(self, label: str, message: str) -> None:
        """A line on standard error."""
        print(f"warning: {label}: {message}", file=sys.stderr, flush=True)

    def finished(self, label: str, metrics: Mapping[str, float | None]) -> None:
        """Not shown."""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("", style="dim")
        return Text(f"{speed:.1f}/s" if speed >= 0.1 else f"{1 / speed:.0f} s each", style="dim")


class Bars:
    """The observer for a terminal; a context manager.

    Args:
      total: arms times seeds.
      console: where to draw; standard output without one.
    """

    def __init__(self, total: int, console: Console | None = None) -> None:
        self._console = console or Console()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._whole = self._bars.add_task("arms x seeds", total=total)
        self._stage = self._bars.add_task("", total=None, visible=False)
        self._label = ""
        self._metrics = Text()
        self._live = Live(
            get_renderable=self._drawing,
            console=self._console,
            refresh_per_second=4,
            transient=True,
        )

    def progress(self, label: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Move the stage's bar, and show the first few metrics."""
        if label != self._label:
            self._label = label
            self._bars.reset(self._stage, description=label, visible=True)
        self._bars.update(self._stage, completed=done, total=total)
        shown = list(metrics.items())[:SHOWN_METRICS]
        self._metrics = Text(
            "  ".join(f"{name} {value:.4g}" for name, value in shown), style="dim", no_wrap=True
        )

    def warn(self, label: str, message: str) -> None:
        """A line above the bars."""
        self._console.print(Text(f"warning: {label}: {message}", style="yellow"))

    def finished(self, label: str, metrics: Mapping[str, float | None]) -> None:
        """Move the bar of the whole."""
        self._bars.advance(self._whole)
        self._bars.update(self._stage, visible=False)
        self._label, self._metrics = "", Text()

    def __enter__(self) -> "Bars":
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def _drawing(self) -> RenderableType:
        return Group(self._bars, self._metrics)


def observer(total: int, *, quiet: bool) -> Bars | Lines:
    """Bars on a terminal, unless `quiet`; plain lines elsewhere. `total` is arms times seeds."""
    return Lines() if quiet or not sys.stdout.isatty() else Bars(total)
