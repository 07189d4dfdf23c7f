"""A chat-completions endpoint: its settings, what it answers, what it costs, how it fails."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

# One request's conversation: `[{"role": "user", "content": "..."}, ...]`.
Messages = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class ServiceConfig:
    """An OpenAI-compatible endpoint and how it is treated.

    Attributes:
      url: what `/chat/completions` is appended to ("https://api.openai.com/v1").
      model: the endpoint's name for the model.
      key_variable: the environment variable that holds the key; empty for none. The key itself is in no
        configuration, which is written to disk.
      sampling: further fields of the request, as JSON has them.
      concurrency: requests under way at a time.
      timeout: seconds from sending a request to having all of its answer.
      patience: seconds without an answer to any request after which those that fail are given up.
      backoff: seconds; the wait after the n-th failure is uniform on [0, backoff * 2**(n - 1)], on top of
        what the service asked for.
      longest_backoff: seconds; the upper end of that interval grows no further.
      prompt_price: of a million tokens read, in any currency.
      completion_price: of a million tokens written.

    Raises:
      ValueError: a setting that cannot be used; the message names it.
    """

    url: str = "http://localhost:8000/v1"
    model: str = "judge"
    key_variable: str = ""
    sampling: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"temperature": 0.0, "max_tokens": 512}
    )
    concurrency: int = 16
    timeout: float = 60.0
    patience: float = 600.0
    backoff: float = 1.0
    longest_backoff: float = 60.0
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: expected http://... or https://..., found {self.url!r}")
        if not self.model:
            raise ValueError("model: expected the endpoint's name of a model, found none")
        if taken := sorted(self.sampling.keys() & {"model", "messages", "stream"}):
            raise ValueError(f"sampling: {', '.join(taken)} cannot be set here")
        if self.concurrency < 1:
            raise ValueError(f"concurrency: expected at least 1, found {self.concurrency}")
        if not self.timeout > 0:
            raise ValueError(f"timeout: expected more than 0 seconds, found {self.timeout}")
        waits, prices = (
            ("patience", "backoff", "longest_backoff"),
            ("prompt_price", "completion_price"),
        )
        for name in waits + prices:
            if not getattr(self, name) >= 0:  # NaN is refused too
                raise ValueError(f"{name}: expected at least 0, found {getattr(self, name)}")

    @property
    def completions_url(self) -> str:
        """Where requests go."""
        return self.url.rstrip("/") + "/chat/completions"

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of so many tokens."""
        price = prompt_tokens * self.prompt_price + completion_tokens * self.completion_price
        return price / 1e6


class Answer(NamedTuple):
    """What the service said to one request.

    Attributes:
      text: the first choice's message; empty where it has none.
      prompt_tokens: tokens read, by the service's count; 0 where it gives none.
      completion_tokens: tokens written.
      refused: why the service does not take this request (it is too long, say); empty where it did.
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refused: str = ""


@dataclasses.dataclass
class Counters:
    """What a client has done since it was made.

    Attributes:
      requests: HTTP requests sent, repeated ones too.
      answered: those that brought an answer.
      cached: answers that were in the cache.
      refused: requests that the service did not take.
      rate_limited: answers of status 429.
      server_errors: answers of status 5xx or 408.
      timeouts: requests that took too long.
      disconnected: connections that could not be made or broke.
      malformed: answers that are no chat completion.
      unmetered: answers without token counts, which are not in `cost`.
      prompt_tokens: tokens read for `answered`.
      completion_tokens: tokens written.
      cost: of these tokens, at the configured prices.
    """

    requests: int = 0
    answered: int = 0
    cached: int = 0
    refused: int = 0
    rate_limited: int = 0
    server_errors: int = 0
    timeouts: int = 0
    disconnected: int = 0
    malformed: int = 0
    unmetered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class ServiceUnavailable(RuntimeError):
    """A service gave no answer for as long as one was willing to wait.

    Attributes:
      url: the endpoint.
      answered: requests of the call whose answers are in the cache.
      total: requests of the call.
      cause: what went wrong last.
    """

    def __init__(self, url: str, answered: int, total: int, patience: float, cause: str):
        super().__init__(
            f"{url}: {answered} of {total} requests are answered and cached; gave up on the others"
            f" after {patience:g} s without an answer ({cause})"
        )
        self.url, self.answered, self.total, self.cause = url, answered, total, cause


class RequestRefused(ValueError):
    """The service says that no request like this can succeed: a wrong key, model, path or setting."""


class Transient(Exception):
    """A failure that may pass.

    Attributes:
      kind: the field of `Counters` that counts it.
      retry_after: seconds that the service asks to wait.
    """

    def __init__(self, kind: str, message: str, retry_after: float = 0.0):
        super().__init__(message)
        self.kind, self.retry_after = kind, retry_after


def read_status(status: int, retry_after: str | None, content: bytes) -> str:
    """Empty for a success, and why where the service refuses this one request.

    Args:
      status: the HTTP status.
      retry_after: the header of that name.
      content: the body, quoted in messages.

    Raises:
      Transient: 429, 408 or 5xx.
      RequestRefused: any other failure, which other requests would meet too.
    """
    if 200 <= status < 300:
        return ""
    message = f"HTTP {status}: {quoted(content)}"
    if status == 429:
        raise Transient("rate_limited", message, seconds_to_wait(retry_after))
    if status == 408 or status >= 500:
        raise Transient("server_errors", message, seconds_to_wait(retry_after))
    if status in (400, 413, 422):
        return message
    raise RequestRefused(message)


def read_answer(content: bytes) -> tuple[Answer, bool]:
    """The answer in a chat completion, and whether it came with token counts.

    Raises:
      Transient: it is none; the message says what was expected and found.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise _malformed("JSON", quoted(content)) from None
    try:
        text = found["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise _malformed("choices[0].message.content", quoted(content)) from None
    if not isinstance(text, str | None):
        raise _malformed("choices[0].message.content: a string", repr(text)[:100])
    usage = found.get("usage") or {}
    try:
        read, written = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return Answer(text or ""), False
    return Answer(text or "", read, written), True


def seconds_to_wait(retry_after: str | None, now: float | None = None) -> float:
    """The seconds that a `Retry-After` header asks for (RFC 9110, 10.2.3); 0 where it says nothing.

    Args:
      retry_after: a number of seconds or an HTTP date.
      now: the time that a date is compared with, in seconds since the epoch; the clock's without it.
    """
    try:
        seconds = float(retry_after or 0)
    except ValueError:
        try:
            date = parsedate_to_datetime(str(retry_after)).timestamp()
        except (ValueError, OverflowError):
            return 0.0
        seconds = date - (time.time() if now is None else now)
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def quoted(content: bytes) -> str:
    """The beginning of a body on one line."""
    text = " ".join(content[:400].decode("utf-8", errors="replace").split())
    return text[:200] or "(empty)"


def _malformed(expected: str, found: str) -> Transient:
    return Transient("malformed", f"expected {expected}, found {found}")
