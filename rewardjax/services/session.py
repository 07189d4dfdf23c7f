"""Requests under way: bounded in number, repeated while there is hope, kept once answered."""

import asyncio
import json
import math
import time
from collections.abc import Sequence
from typing import Any

from rewardjax.services.cache import AnswerCache, request_key
from rewardjax.services.endpoint import (
    Answer,
    Counters,
    Messages,
    RequestRefused,
    ServiceConfig,
    ServiceUnavailable,
    Transient,
    read_answer,
    read_status,
)

GREETING = ({"role": "user", "content": "Answer with OK."},)


class Session:
    """What one event loop asks of a service.

    Args:
      config: the endpoint.
      http: an `httpx.AsyncClient` that sends the key.
      cache: of answers.
      counters: added to.
    """

    def __init__(self, config: ServiceConfig, http: Any, cache: AnswerCache, counters: Counters):
        self.config, self.http, self.cache, self.counters = config, http, cache, counters
        self._slots = asyncio.Semaphore(config.concurrency)
        self._last_answer = -math.inf  # on the monotonic clock; to any request

    async def check(self, patience: float) -> None:
        """Ask for one short answer, which is not cached.

        Raises:
          ServiceUnavailable: there was none in `patience` seconds.
          RequestRefused: the service does not take a request with these settings.
        """
        try:
            answer = await self._persist(GREETING, patience, asyncio.Event())
        except Transient as error:
            url = self.config.completions_url
            raise ServiceUnavailable(url, 0, 1, patience, str(error)) from error
        if answer.refused:
            raise RequestRefused(f"{self.config.completions_url}: {answer.refused}")

    async def answer(self, requests: Sequence[Messages]) -> list[Answer]:
        """The answers in the requests' order; equal requests are asked once.

        Once a request is given up, no new one is sent; those under way are still waited for, so that
        their answers are kept.

        Raises:
          ServiceUnavailable: a request was given up.
          RequestRefused: the service takes no request with this key, model or path.
          OSError: the cache cannot be written.
        """
        config = self.config
        keys = [request_key(config.model, messages, config.sampling) for messages in requests]
        found = {key: answer for key in set(keys) if (answer := self.cache.get(key)) is not None}
        self.counters.cached += sum(key in found for key in keys)
        missing = {key: it for key, it in zip(keys, requests) if key not in found}
        stop = asyncio.Event()

        async def ask(key: str, messages: Messages) -> None:
            async with self._slots:
                if stop.is_set():
                    return
                try:
                    answer = await self._persist(messages, config.patience, stop)
                    found[key] = answer if answer.refused else self.cache.put(key, answer)
                except Exception:
                    stop.set()
                    raise

        outcomes = await asyncio.gather(
            *(ask(key, messages) for key, messages in missing.items()), return_exceptions=True
        )
        errors = [error for error in outcomes if error is not None]
        for error in errors:
            if not isinstance(error, Transient):
                raise error
        if errors:
            kept = sum(key in found and not found[key].refused for key in keys)
            url, cause = config.completions_url, errors[-1]
            raise ServiceUnavailable(url, kept, len(keys), config.patience, str(cause)) from cause
        return [found[key] for key in keys]

    async def _persist(self, messages: Messages, patience: float, stop: asyncio.Event) -> Answer:
        """Send a request until it is answered, or `stop` is set, or nothing is answered for `patience`."""
        import tenacity as t

        jitter = t.wait_random_exponential(self.config.backoff, self.config.longest_backoff)
        started = time.monotonic()

        def wait(state: Any) -> float:
            return jitter(state) + state.outcome.exception().retry_after

        def give_up(state: Any) -> bool:
            waited = time.monotonic() - max(started, self._last_answer)
            return stop.is_set() or waited + state.upcoming_sleep >= patience

        retrying = t.AsyncRetrying(
            retry=t.retry_if_exception_type(Transient), wait=wait, stop=give_up, reraise=True
        )
        return await retrying(self._send, messages)

    async def _send(self, messages: Messages) -> Answer:
        """One request and its answer."""
        import httpx

        request = {"model": self.config.model, "messages": list(messages), **self.config.sampling}
        counters = self.counters
        counters.requests += 1
        try:
            # httpx's own time-out is for each read: a service that drips bytes would never meet it.
            async with asyncio.timeout(self.config.timeout):
                # JSON in ASCII: a policy can write half a surrogate pair, which UTF-8 does not have.
                response = await self.http.post(
                    self.config.completions_url, content=json.dumps(request).encode()
                )
            retry_after = response.headers.get("retry-after")
            refused = read_status(response.status_code, retry_after, response.content)
            answer, metered = (
                (Answer("", refused=refused), True) if refused else read_answer(response.content)
            )
        except TimeoutError:
            counters.timeouts += 1
            message = f"no answer in {self.config.timeout:g} s"
            raise Transient("timeouts", message) from None
        except httpx.RequestError as error:
            counters.disconnected += 1
            message = f"{type(error).__name__}: {error}".rstrip(": ")
            raise Transient("disconnected", message) from error
        except Transient as error:
            setattr(counters, error.kind, getattr(counters, error.kind) + 1)
            raise
        except RequestRefused as error:
            counters.refused += 1
            raise RequestRefused(f"{self.config.completions_url}: {error}") from None
        self._count(answer, metered)
        return answer

    def _count(self, answer: Answer, metered: bool) -> None:
        counters, self._last_answer = self.counters, time.monotonic()
        if answer.refused:
            counters.refused += 1
            return
        counters.answered += 1
        counters.unmetered += not metered
        counters.prompt_tokens += answer.prompt_tokens
        counters.completion_tokens += answer.completion_tokens
        counters.cost += self.config.cost(answer.prompt_tokens, answer.completion_tokens)
