"""Ctrl-C and SIGTERM: the first one asks for a checkpoint, the second one stops at once."""

import contextlib
import signal
from collections.abc import Callable, Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler wants the machine back. Like Ctrl-C it is no error of the program's."""


def stop_for(number: int) -> KeyboardInterrupt:
    """The exception of a signal that `interruption` has seen."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def number_of(stop: KeyboardInterrupt) -> int:
    """The signal that such an exception stands for."""
    return int(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM raises `Terminated`, so that what is open is closed; a handler is put back after."""

    def terminate(number, frame):
        raise Terminated

    with _handling((signal.SIGTERM,), lambda previous: terminate):
        yield


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[], int]]:
    """Turn the first Ctrl-C or SIGTERM into a number that the loop reads between calls.

    Returns:
      A function: the number of the first signal seen, 0 before there is one. A second signal of the same
      kind does what it did before.
    """
    seen: list[int] = []

    def first(previous):
        def handler(number, frame):
            seen.append(number)
            signal.signal(number, previous)

        return handler

    with _handling((signal.SIGINT, signal.SIGTERM), first):
        yield lambda: seen[0] if seen else 0


@contextlib.contextmanager
def _handling(numbers: tuple[int, ...], handler_after: Callable) -> Iterator[None]:
    """`handler_after(previous)` handles each signal; one that is ignored stays ignored."""
    replaced = {}
    try:
        for number in numbers:
            previous = signal.getsignal(number)
            if previous is not signal.SIG_IGN:
                # None: a handler that was not set from Python, which cannot be put back.
                previous = signal.SIG_DFL if previous is None else previous
                signal.signal(number, handler_after(previous))
                replaced[number] = previous
    except ValueError:
        pass  # not the main thread: signals are not ours to handle
    try:
        yield
    finally:
        for number, previous in replaced.items():
            signal.signal(number, previous)
