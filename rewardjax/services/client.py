"""A service for code that is not asynchronous: one thread with an event loop of its own."""

import asyncio
import dataclasses
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from rewardjax.services.cache import AnswerCache
from rewardjax.services.endpoint import Answer, Counters, Messages, ServiceConfig
from rewardjax.services.session import Session


class Client:
    """Asks a chat-completions endpoint, keeps the answers on disk and counts what they cost.

    A context manager, which may be entered again: requests go through one background thread, which
    runs as long as it is open. What is under way when it closes is cancelled.

        with Client(config, folder / "answers.sqlite") as client:
            client.check()
            answers = client.complete([[{"role": "user", "content": "Is 7 prime?"}]])

    Args:
      config: the endpoint.
      cache: the file of answers (`AnswerCache`); runs may share it.

    Raises:
      ImportError: httpx or tenacity is not installed.
    """

    def __init__(self, config: ServiceConfig, cache: Path):
        _require_packages()
        self.config, self.cache = config, cache
        self._counters = Counters()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Client":
        """Open the cache and start the thread; nothing is sent yet.

        Raises:
          ValueError: the key's variable is not set, or the cache's file is something else.
          RuntimeError: it is open already.
        """
        if self._thread is not None:
            raise RuntimeError("the client is open already")
        headers = {"Content-Type": "application/json", **_authorization(self.config)}
        cache = AnswerCache(self.cache)
        started: Future = Future()
        self._thread = threading.Thread(
            target=asyncio.run,
            args=(self._serve(cache, headers, started),),
            name="service",
            daemon=True,
        )
        self._thread.start()
        self._loop, self._session, self._stop = started.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None

    @property
    def counters(self) -> Counters:
        """A copy of the counts so far, over all times that the client was open."""
        return dataclasses.replace(self._counters)

    def check(self, patience: float = 5.0) -> None:
        """Ask for one short answer: call it before any long work.

        Args:
          patience: seconds in which failures are tried again.

        Raises:
          ServiceUnavailable: the endpoint cannot be reached or does not answer properly.
          RequestRefused: it does not take requests with this key, model or sampling.
        """
        self._submit(self._opened().check(patience)).result()

    def complete(self, requests: Sequence[Messages]) -> list[Answer]:
        """The answers in the requests' order, from the cache where it has them.

        Equal requests have one answer: to draw several, make them differ (by a "seed" in the text).

        Raises:
          ServiceUnavailable: no answer to anything for `patience` seconds; what was answered is
            cached, so that the same call goes on from there.
          RequestRefused: the service takes no request with this key, model or path.
          OSError: the cache cannot be written.
          RuntimeError: the client is not open.
        """
        return self.submit(requests).result()

    def submit(self, requests: Sequence[Messages]) -> Future[list[Answer]]:
        """Like `complete`, in the background; the result raises what `complete` does.

        Calls under way share `concurrency`.
        """
        return self._submit(self._opened().answer(requests))

    def _opened(self) -> Session:
        if self._thread is None:
            raise RuntimeError("the client is not open: use it inside `with client:`")
        return self._session

    def _submit(self, asking: Any) -> Future:
        return asyncio.run_coroutine_threadsafe(asking, self._loop)

    async def _serve(self, cache: AnswerCache, headers: dict[str, str], started: Future) -> None:
        import httpx

        try:
            limits = httpx.Limits(max_connections=self.config.concurrency)
            async with httpx.AsyncClient(headers=headers, timeout=None, limits=limits) as http:
                session = Session(self.config, http, cache, self._counters)
                stop = asyncio.Event()
                started.set_result((asyncio.get_running_loop(), session, stop))
                await stop.wait()
                await _cancel_others()
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)
        finally:
            cache.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _authorization(config: ServiceConfig) -> dict[str, str]:
    if not config.key_variable:
        return {}
    key = os.environ.get(config.key_variable, "")
    if not key:
        raise ValueError(f"key_variable: expected a key in ${config.key_variable}, found none")
    return {"Authorization": f"Bearer {key}"}


def _require_packages() -> None:
    try:
        import httpx  # noqa: F401
        import tenacity  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"a remote service needs {error.name}: pip install 'rewardjax[judge]'"
        ) from error
