"""A served model: counters, cache, retries, limits, and what is left when the service dies."""

import dataclasses
import json
import random
import socket
import sys
import threading
import time

import pytest
from fake_service import FakeService, completion, drip, drop, slow, status

from rewardjax.services import (
    Answer,
    Client,
    Counters,
    RequestRefused,
    ServiceConfig,
    ServiceUnavailable,
)
from rewardjax.services.endpoint import seconds_to_wait

pytest.importorskip("httpx")
pytest.importorskip("tenacity")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def service():
    with FakeService() as found:
        yield found


def settings(service, **changes):
    quick = {"patience": 2.0, "timeout": 2.0, "backoff": 0.01, "longest_backoff": 0.05}
    return ServiceConfig(url=service.url, **(quick | changes))


def client_of(service, tmp_path, **changes):
    return Client(settings(service, **changes), tmp_path / "answers.sqlite")


def says(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def counted(client):
    """The counters that are not 0."""
    return {k: v for k, v in dataclasses.asdict(client.counters).items() if v}


def test_answers_come_in_order_and_are_paid_for(service, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    config = {"key_variable": "JUDGE_KEY", "prompt_price": 2.0, "completion_price": 8.0}
    with client_of(service, tmp_path, sampling={"temperature": 0.5}, **config) as client:
        answers = client.complete(says("a", "b", "c"))
    assert answers == [Answer(f"re: {x}", 10, 5) for x in "abc"]
    assert counted(client) == {
        "requests": 3,
        "answered": 3,
        "prompt_tokens": 30,
        "completion_tokens": 15,
        "cost": pytest.approx((30 * 2 + 15 * 8) / 1e6),
    }
    assert service.headers[0]["Authorization"] == "Bearer secret"
    assert service.headers[0]["path"] == "/v1/chat/completions"
    sent = next(body for body in service.bodies if body["messages"] == says("b")[0])
    assert sent == {"model": "judge", "messages": says("b")[0], "temperature": 0.5}
    assert "secret" not in repr(client.config)


def test_what_was_answered_is_not_asked_again(service, tmp_path):
    with client_of(service, tmp_path) as client:
        client.complete(says("a", "a", "b"))
        assert len(service.bodies) == 2
        assert client.complete(says("b", "a")) == [Answer("re: b", 10, 5), Answer("re: a", 10, 5)]
        assert len(service.bodies) == 2
        assert client.counters.cached == 2
    with client_of(service, tmp_path) as another:
        another.complete(says("a", "c"))
        assert counted(another)["cached"] == 1
    assert [body["messages"] for body in service.bodies[2:]] == says("c")
    with client_of(service, tmp_path, sampling={"temperature": 1.0}) as warmer:
        warmer.complete(says("a"))
    with client_of(service, tmp_path, model="another") as other_model:
        other_model.complete(says("a"))
    assert len(service.bodies) == 5


def test_a_dead_service_is_not_needed_for_cached_answers(service, tmp_path):
    with client_of(service, tmp_path) as client:
        before = client.complete(says("a", "b"))
        service.die()
        assert client.complete(says("a", "b")) == before


def test_calls_share_a_bound_on_concurrency(service, tmp_path):
    service.seconds = 0.04
    with client_of(service, tmp_path, concurrency=3) as client:
        pending = [client.submit(says(*(f"{i}{j}" for j in range(6)))) for i in range(2)]
        assert [len(each.result()) for each in pending] == [6, 6]
    assert service.busiest == 3
    assert service.served == 12


FAULTS = {
    "rate limit": (status(429), "rate_limited"),
    "500": (status(500), "server_errors"),
    "503 with a page": (status(503, "<html>busy</html>"), "server_errors"),
    "dropped": (drop, "disconnected"),
    "not JSON": (status(200, "<html>"), "malformed"),
    "no choices": (status(200, '{"choices": []}'), "malformed"),
    "no content": (status(200, '{"choices": [{"message": {}}]}'), "malformed"),
    "a list": (status(200, "[1]"), "malformed"),
    "content is no text": (status(200, completion(3).decode()), "malformed"),
    "slow": (slow(0.6), "timeouts"),
    "drips": (drip(0.6), "timeouts"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failures_that_may_pass_are_tried_again_and_counted(service, tmp_path, fault):
    behaviour, kind = FAULTS[fault]
    service.script = [behaviour]
    with client_of(service, tmp_path, timeout=0.2) as client:
        assert client.complete(says("a")) == [Answer("re: a", 10, 5)]
    found = counted(client)
    assert (found["requests"], found["answered"], found[kind]) == (2, 1, 1)


def test_the_wait_grows_up_to_its_limit(service, tmp_path, monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    service.script = [status(500)] * 4
    with client_of(service, tmp_path, backoff=0.04, longest_backoff=0.1) as client:
        client.complete(says("a"))
    gaps = [after - before for before, after in zip(service.times, service.times[1:])]
    for gap, expected in zip(gaps, [0.04, 0.08, 0.1, 0.1], strict=True):
        assert expected <= gap < expected + 0.3


def test_retry_after_is_honoured(service, tmp_path):
    service.script = [status(429, Retry_After="1")]
    with client_of(service, tmp_path) as client:
        client.complete(says("a"))
    assert 1.0 <= service.times[1] - service.times[0] < 1.5


def test_a_wait_beyond_the_patience_is_not_begun(service, tmp_path):
    service.script = [status(429, "quota used up", Retry_After="3600")]
    started = time.monotonic()
    with client_of(service, tmp_path) as client, pytest.raises(ServiceUnavailable, match="quota"):
        client.complete(says("a"))
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        ("0.5", 0.5),
        ("-3", 0),
        ("soon", 0),
        ("nan", 0),
        ("inf", 0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(header, seconds):
    assert seconds_to_wait(header, now=100.0) == seconds


def test_a_refused_key_stops_at_once(service, tmp_path):
    service.script = [status(401, '{"error": "bad key"}')]
    with client_of(service, tmp_path, concurrency=1) as client:
        with pytest.raises(RequestRefused, match=r"/v1/chat/completions: HTTP 401: .*bad key"):
            client.complete(says("a", "b", "c"))
        assert counted(client) == {"requests": 1, "refused": 1}


def test_one_request_that_is_refused_does_not_stop_the_others(service, tmp_path):
    service.script = [status(400, "too long")]
    with client_of(service, tmp_path, concurrency=1) as client:
        first, second = client.complete(says("a", "b"))
        assert first == Answer("", refused="HTTP 400: too long")
        assert second.text == "re: b"
        assert counted(client)["refused"] == 1
        # A refusal is not kept: the service may be given a longer context.
        assert client.complete(says("a"))[0].text == "re: a"


def test_answers_without_text_or_usage(service, tmp_path):
    service.script = [
        status(200, completion(None, prompt_tokens=3, completion_tokens=0).decode()),
        status(200, completion("free").decode()),
        status(200, completion("odd", prompt_tokens=3).decode()),
    ]
    with client_of(service, tmp_path, concurrency=1) as client:
        found = client.complete(says("a", "b", "c"))
    assert found == [Answer("", 3, 0), Answer("free"), Answer("odd")]
    assert client.counters.unmetered == 2


def test_nothing_is_lost_when_the_service_dies_and_comes_back(service, tmp_path):
    requests = says(*"abcdefghijkl")
    service.die_after = 5
    with client_of(service, tmp_path, concurrency=2, patience=0.2) as client:
        with pytest.raises(ServiceUnavailable) as stopped:
            client.complete(requests)
        error = stopped.value
        assert (error.answered, error.total) == (5, 12)
        assert f"{service.url}/chat/completions: 5 of 12 requests are answered" in str(error)
        assert error.cause in str(error)
        assert client.counters.answered == 5
        assert client.counters.disconnected >= 2
    service.start()
    with client_of(service, tmp_path) as client:
        assert [it.text for it in client.complete(requests)] == [f"re: {x}" for x in "abcdefghijkl"]
        assert (client.counters.cached, client.counters.requests) == (5, 7)
    assert service.served == 12


def test_a_service_that_answers_others_is_waited_for(service, tmp_path):
    def no_a_for_long(handler):
        late = time.monotonic() - service.times[0] > 0.6
        is_a = handler.body["messages"] == says("a")[0]
        (status(500) if is_a and not late else slow(0.05))(handler)

    service.script = [no_a_for_long] * 1000
    with client_of(service, tmp_path, concurrency=2, patience=0.3) as client:
        found = client.complete(says("a", *(f"b{i}" for i in range(16))))
    assert found[0].text == "re: a"
    assert client.counters.server_errors >= 5


def test_answers_under_way_are_kept_when_another_is_given_up(service, tmp_path):
    def bad_a(handler):
        (status(500, "no a") if "a" in str(handler.body["messages"]) else slow(0.4))(handler)

    service.script = [bad_a] * 100
    with client_of(service, tmp_path, concurrency=2, patience=0.1) as client:
        with pytest.raises(ServiceUnavailable, match=r"1 of 3 .*HTTP 500: no a"):
            client.complete(says("a", "b", "c"))
        assert client.counters.answered == 1
        sent = len(service.bodies)
        assert client.complete(says("b"))[0].text == "re: b"
        assert len(service.bodies) == sent
    assert says("c")[0] not in [body["messages"] for body in service.bodies]


def test_an_unreachable_endpoint_is_found_before_the_work(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        config = ServiceConfig(url=url, backoff=0.01)
        started = time.monotonic()
        with Client(config, tmp_path / "a.sqlite") as client:
            with pytest.raises(ServiceUnavailable, match=rf"{url}.*ConnectError"):
                client.check(patience=0.2)
            assert client.counters.disconnected >= 2
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        (status(200, "<html>hello"), ServiceUnavailable, "expected JSON, found <html>hello"),
        (status(404, "no such model"), RequestRefused, "HTTP 404: no such model"),
        (status(400, "temperature"), RequestRefused, "HTTP 400: temperature"),
        (status(301, "elsewhere"), RequestRefused, "HTTP 301: elsewhere"),
    ],
)
def test_the_check_says_what_is_wrong(service, tmp_path, behaviour, error, message):
    service.script = [behaviour] * 100
    with client_of(service, tmp_path) as client, pytest.raises(error, match=message):
        client.check(patience=0.1)


def test_the_check_always_asks(service, tmp_path):
    with client_of(service, tmp_path) as client:
        client.check()
        client.check()
    assert service.served == 2


def test_work_goes_on_while_answers_are_awaited(tmp_path):
    release = threading.Event()

    def reply(messages):
        assert release.wait(5)
        return "late"

    with FakeService(reply) as service, client_of(service, tmp_path) as client:
        pending = client.submit(says("a", "b"))
        service.wait_for(2)
        assert not pending.done()
        release.set()
        assert [it.text for it in pending.result(5)] == ["late", "late"]


def test_closing_cancels_what_is_under_way_and_may_be_opened_again(service, tmp_path):
    client = client_of(service, tmp_path)
    with pytest.raises(RuntimeError, match="not open"):
        client.complete(says("a"))
    service.seconds = 0.8
    with client:
        pending = client.submit(says(*"abcdef"))
        service.wait_for(6)
        started = time.monotonic()
        with pytest.raises(RuntimeError, match="open already"):
            client.__enter__()
    assert pending.cancelled()
    assert counted(client) == {"requests": 6}
    assert time.monotonic() - started < 0.6
    service.seconds = 0.0
    with client:
        assert client.complete(says("g"))[0].text == "re: g"


def test_strings_that_utf8_does_not_have(tmp_path):
    odd = "half \ud800, nul \x00, line\u2028"
    with FakeService() as service, client_of(service, tmp_path) as client:
        first = client.complete(says(odd))
        assert first[0].text == f"re: {odd}"
        assert client.complete(says(odd)) == first
        assert service.bodies[0]["messages"] == says(odd)[0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("url", "localhost:8000"),
        ("model", ""),
        ("sampling", {"messages": []}),
        ("concurrency", 0),
        ("timeout", 0.0),
        ("patience", -1.0),
        ("backoff", float("nan")),
        ("prompt_price", -0.1),
    ],
)
def test_settings_that_cannot_be_used(setting, value):
    with pytest.raises(ValueError, match=f"^{setting}:"):
        ServiceConfig(**{setting: value})


def test_a_key_that_is_not_set(tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    client = Client(ServiceConfig(key_variable="JUDGE_KEY"), tmp_path / "a.sqlite")
    with pytest.raises(ValueError, match=r"key_variable: expected a key in \$JUDGE_KEY"), client:
        pass


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ImportError, match=r"needs httpx: pip install 'rewardjax\[judge\]'"):
        Client(ServiceConfig(), tmp_path / "a.sqlite")


def test_counters_go_into_a_log(service, tmp_path):
    with client_of(service, tmp_path) as client:
        client.complete(says("a"))
        before = client.counters
        client.complete(says("b"))
    assert before.answered == 1
    assert json.loads(json.dumps(dataclasses.asdict(before)))["requests"] == 1
    assert Counters(**dataclasses.asdict(before)) == before
