"""Seeds side by side: each runs in a thread of its own, and their program calls are one vmapped call."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from rewardjax.training.signals import number_of, stop_for

Result = TypeVar("Result")
Program = Callable[..., Any]


class Cohort:
    """What the threads of some seeds share.

    A seed's call of a program waits until every seed that is still running has called one; then equal
    programs run as one, over stacked arguments.

    Args:
      size: seeds.

    Attributes:
      alone: a lock for what one seed at a time may do.
      error: what ended it: a seed's own or that of a common call; None while all is well.
    """

    def __init__(self, size: int):
        self._condition = threading.Condition()
        self._running = size
        self._waiting: dict[int, tuple[Program, tuple[Any, ...]]] = {}
        self._results: dict[int, Any] = {}
        self._vmapped: dict[Program, Program] = {}
        self.error: BaseException | None = None
        self._stop = 0
        self.alone = threading.Lock()

    def stop(self, number: int) -> None:
        """Ask all seeds to save their state and end, because of this signal."""
        self._stop = number

    def stopping(self) -> int:
        """The signal that asked the seeds to end; 0 before there is one."""
        return self._stop

    def call(self, member: int, program: Program, *arguments: Any) -> Any:
        """`program(*arguments)` for one of the seeds.

        Raises:
          Exception: what another seed's call or the common one raised; no seed goes on after that.
        """
        with self._condition:
            self._waiting[member] = (program, arguments)
            self._proceed()
            self._condition.wait_for(lambda: member in self._results or self.error)
            if self.error is not None:
                raise Abandoned("another seed failed") from self.error
            return self._results.pop(member)

    def leave(self, error: BaseException | None) -> None:
        """A seed is done, or failed with `error`: the others need not wait for it any more."""
        with self._condition:
            self._running -= 1
            if error is not None and not isinstance(error, Abandoned | KeyboardInterrupt):
                self.error = self.error or error
            self._proceed()
            self._condition.notify_all()

    def _proceed(self) -> None:
        if not self._waiting or len(self._waiting) < self._running or self.error:
            return
        waiting, self._waiting = self._waiting, {}
        try:
            for program in dict.fromkeys(program for program, _ in waiting.values()):
                members = [m for m, (called, _) in waiting.items() if called is program]
                rows = [waiting[m][1] for m in members]
                stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)
                found = self._of(program)(*stacked)
                for i, member in enumerate(members):
                    self._results[member] = jax.tree.map(lambda x, i=i: x[i], found)
        except Exception as error:
            self.error = error
        self._condition.notify_all()

    def _of(self, program: Program) -> Program:
        if program not in self._vmapped:
            self._vmapped[program] = jax.jit(jax.vmap(program))
        return self._vmapped[program]


@dataclasses.dataclass(frozen=True)
class Seat:
    """A seed's place in a cohort."""

    cohort: Cohort
    member: int

    def call(self, program: Program, *arguments: Any) -> Any:
        """`program(*arguments)`, together with the other seeds."""
        return self.cohort.call(self.member, program, *arguments)


class Abandoned(RuntimeError):
    """A seed that ends because another one failed."""


def side_by_side(
    work: Sequence[Callable[[Seat], Result]],
) -> list[Result]:
    """The results of functions that run at the same time and share a cohort.

    Args:
      work: each takes its seat.

    Raises:
      Exception: the first that one of them raised.
      KeyboardInterrupt: Ctrl-C or SIGTERM, after each has ended.
    """
    cohort = Cohort(len(work))
    results: dict[int, Result] = {}

    def run(member: int) -> None:
        error: BaseException | None = None
        try:
            results[member] = work[member](Seat(cohort, member))
        except BaseException as raised:
            error = raised
        finally:
            cohort.leave(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        _join(thread, cohort)
    if cohort.error is not None:
        raise cohort.error
    if cohort.stopping():
        raise stop_for(cohort.stopping())
    return [results[i] for i in range(len(work))]


def _join(thread: threading.Thread, cohort: Cohort) -> None:
    """Wait for a thread; a signal, which only the main thread gets, is passed on to the cohort."""
    while thread.is_alive():
        try:
            thread.join(0.2)
        except KeyboardInterrupt as stop:
            if cohort.stopping():
                raise  # the second one ends it at once
            cohort.stop(number_of(stop))
