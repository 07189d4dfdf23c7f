"""Several processes that run one program: joining them, and what they have to agree on."""

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

JOIN_SECONDS = 300
AUTO = "auto"


class JoinError(RuntimeError):
    """The processes did not come together: a setting is wrong, or one of them never joined."""


@dataclasses.dataclass(frozen=True)
class Place:
    """One process among several.

    Attributes:
      coordinator: `host:port` of process 0, or "auto": JAX asks its cluster (TPU pods, GKE, Slurm).
      processes: how many there are; 0 with "auto".
      index: of this one, from 0.
      seconds: how long to wait for the others.
    """

    coordinator: str
    processes: int = 0
    index: int = 0
    seconds: int = JOIN_SECONDS

    def __post_init__(self) -> None:
        if self.coordinator == AUTO:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdigit()):
            raise JoinError(
                f"REWARDJAX_COORDINATOR: expected host:port or {AUTO}, found {self.coordinator!r}"
            )
        if not 0 <= self.index < self.processes:
            raise JoinError(
                f"REWARDJAX_PROCESS: expected 0 to REWARDJAX_PROCESSES - 1 ({self.processes - 1}),"
                f" found {self.index}"
            )


def place_from(variables: Mapping[str, str]) -> Place | None:
    """This process's place by `REWARDJAX_COORDINATOR`, `_PROCESSES`, `_PROCESS` and `_JOIN_SECONDS`.

    Returns:
      None without `REWARDJAX_COORDINATOR`: there is one process.

    Raises:
      JoinError: a variable is missing or no number.
    """
    coordinator = variables.get("REWARDJAX_COORDINATOR")
    if not coordinator:
        return None

    def number(name: str, default: int | None = None) -> int:
        text = variables.get(f"REWARDJAX_{name}", "" if default is None else str(default))
        if not text.isdigit():
            raise JoinError(f"REWARDJAX_{name}: expected a number from 0, found {text!r}")
        return int(text)

    seconds = number("JOIN_SECONDS", JOIN_SECONDS)
    if coordinator == AUTO:
        return Place(coordinator, seconds=seconds)
    return Place(coordinator, number("PROCESSES"), number("PROCESS"), seconds)


def initialise(place: Place | None = None) -> None:
    """Join the other processes; call it before anything asks JAX for its devices.

    Args:
      place: this process's; by the environment without one. With neither nothing is done.

    Raises:
      JoinError: a wrong setting, or processes that did not join in time: their indices are named.
    """
    place = place or place_from(os.environ)
    if place is None:
        return
    if place.coordinator == AUTO:
        try:
            jax.distributed.initialize(initialization_timeout=place.seconds)
        except (ValueError, RuntimeError) as error:
            raise JoinError(f"REWARDJAX_COORDINATOR={AUTO}: {error}") from error
        return
    # JAX ends a process whose peers do not come, and does not say which: so they meet here first.
    _meet(place)
    jax.distributed.initialize(
        place.coordinator, place.processes, place.index, initialization_timeout=place.seconds
    )


def is_first() -> bool:
    """Whether this is process 0, which alone writes results and logs."""
    return not _several() or jax.process_index() == 0


def agreed(number: int) -> int:
    """The largest of all processes' numbers (int32); every process has to ask."""
    if not _several():
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def from_first(value: Any) -> Any:
    """What process 0 holds, in every process: a value of JSON; every process has to ask."""
    if not _several():
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    padded = text if is_first() else np.zeros(size, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def _several() -> bool:
    # Asked first, so that a command that needs no device does not take one.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _meet(place: Place) -> None:
    """Return once all processes are there.

    Process 0 listens at the coordinator's address, which JAX takes over afterwards. The others send
    their index and how many processes they expect, and read "" (go on) or what is wrong.
    """
    deadline = time.monotonic() + place.seconds
    host, _, port = place.coordinator.rpartition(":")
    first = place.index == 0
    problem = (
        _gather(place, int(port), deadline) if first else _ask(place, host, int(port), deadline)
    )
    if problem:
        raise JoinError(problem)


def _gather(place: Place, port: int, deadline: float) -> str:
    joined: set[int] = set()
    peers: list[socket.socket] = []
    problem = ""
    try:
        listener = socket.create_server(("", port), backlog=place.processes)
    except OSError as error:
        raise JoinError(f"process 0 cannot listen at {place.coordinator}: {error}") from error
    with listener:
        while len(joined) < place.processes - 1 and not problem:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer, _ = listener.accept()
                peer.settimeout(10)
                index, expected = map(int, peer.makefile().readline().split())
            except TimeoutError:
                missing = sorted(set(range(1, place.processes)) - joined)
                problem = (
                    f"expected {place.processes} processes at {place.coordinator}; after"
                    f" {place.seconds} s these have not joined: {', '.join(map(str, missing))}"
                )
                break
            except (OSError, ValueError):
                continue  # not one of ours: a port scan, or a process that died
            if expected != place.processes:
                problem = f"process {index} expects {expected} processes, not {place.processes}"
            elif index in joined:
                problem = f"process {index} joined twice"
            joined.add(index)
            peers.append(peer)
    for peer in peers:
        with peer, contextlib.suppress(OSError):  # one that died since fails JAX's own check
            peer.sendall(f"{problem}\n".encode())
    return problem


def _ask(place: Place, host: str, port: int, deadline: float) -> str:
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=5) as peer:
                peer.sendall(f"{place.index} {place.processes}\n".encode())
                # Process 0 answers at its own deadline, which may be a little later.
                peer.settimeout(max(0.01, deadline - time.monotonic()) + 30)
                line = peer.makefile().readline()
            if line:
                return line.strip()
        except OSError:
            pass  # it is not there yet
        time.sleep(0.2)
    return (
        f"process {place.index} of {place.processes}: process 0 did not answer at"
        f" {place.coordinator} within {place.seconds} s"
    )
