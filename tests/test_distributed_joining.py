"""How processes meet, what they agree on, and what a signal does to one."""

import os
import signal
import socket
import threading
import time

import jax
import pytest

from rewardjax.training import distributed
from rewardjax.training.distributed import JoinError, Place, initialise, place_from
from rewardjax.training.signals import Terminated, interruption, terminable


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def meet_all(*places):
    """What each process is told, by its index."""
    told = {}

    def join(place):
        try:
            distributed._meet(place)
            told[place.index] = "joined"
        except JoinError as error:
            told[place.index] = str(error)

    threads = [threading.Thread(target=join, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_processes_meet():
    address = f"localhost:{free_port()}"
    assert meet_all(*(Place(address, 3, i, 30) for i in range(3))) == dict.fromkeys(
        range(3), "joined"
    )


def test_processes_that_never_join_are_named_to_all():
    address = f"localhost:{free_port()}"
    told = meet_all(*(Place(address, 5, i, 2) for i in (0, 2, 4)))
    message = f"expected 5 processes at {address}; after 2 s these have not joined: 1, 3"
    assert told == {0: message, 2: message, 4: message}


def test_the_first_process_never_joins():
    address = f"localhost:{free_port()}"
    told = meet_all(Place(address, 2, 1, 1))
    assert told[1].startswith(f"process 1 of 2: process 0 did not answer at {address} within 1 s")


def test_an_index_that_is_given_twice():
    address = f"localhost:{free_port()}"
    places = [Place(address, 3, 0, 30), Place(address, 3, 1, 30)]
    told = meet_all(*places, Place(address, 3, 1, 30))
    assert told == {0: "process 1 joined twice", 1: "process 1 joined twice"}


def test_processes_that_expect_different_numbers():
    address = f"localhost:{free_port()}"
    told = meet_all(Place(address, 2, 0, 30), Place(address, 4, 3, 30))
    assert told[0] == told[3] == "process 3 expects 4 processes, not 2"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"COORDINATOR": "here"}, "REWARDJAX_PROCESSES: expected a number from 0, found ''"),
        (
            {"COORDINATOR": "here", "PROCESSES": "2", "PROCESS": "0"},
            "REWARDJAX_COORDINATOR: expected host:port or auto, found 'here'",
        ),
        (
            {"COORDINATOR": "h:1", "PROCESSES": "2", "PROCESS": "2"},
            r"REWARDJAX_PROCESS: expected 0 to REWARDJAX_PROCESSES - 1 \(1\), found 2",
        ),
        (
            {"COORDINATOR": "auto", "JOIN_SECONDS": "soon"},
            "REWARDJAX_JOIN_SECONDS: expected a number from 0, found 'soon'",
        ),
    ],
)
def test_wrong_settings_are_named(variables, message):
    with pytest.raises(JoinError, match=message):
        place_from({f"REWARDJAX_{name}": value for name, value in variables.items()})


def test_places_by_the_environment(monkeypatch):
    found = place_from(
        {
            "REWARDJAX_COORDINATOR": "h:1",
            "REWARDJAX_PROCESSES": "4",
            "REWARDJAX_PROCESS": "3",
            "REWARDJAX_JOIN_SECONDS": "7",
        }
    )
    assert found == Place("h:1", 4, 3, 7)
    assert place_from({"REWARDJAX_COORDINATOR": "auto"}) == Place("auto", 0, 0, 300)
    monkeypatch.delenv("REWARDJAX_COORDINATOR", raising=False)
    initialise()
    assert not jax.distributed.is_initialized()


def test_one_process_agrees_with_itself():
    assert distributed.is_first()
    assert distributed.agreed(15) == 15
    assert distributed.from_first({"a": None}) == {"a": None}


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def test_the_second_signal_of_a_kind_does_what_it_did_before():
    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        with interruption() as seen:
            assert seen() == 0
            send(signal.SIGINT)
            send(signal.SIGTERM)
            assert seen() == signal.SIGINT
            with pytest.raises(Terminated):
                send(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGINT)
        with pytest.raises(Terminated):
            send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruption() as seen:
            send(signal.SIGINT)
            assert seen() == 0
    finally:
        signal.signal(signal.SIGINT, before)
