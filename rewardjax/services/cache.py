"""Answers that were paid for, on disk.

SQLite by the standard library: a transaction an answer, so that a killed process loses none, and
locks that let several processes share one file. What is stored is JSON and not pickles, so that a
cache from somebody else can be read without running their code.
"""

import errno
import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewardjax.services.endpoint import Answer, Messages

LOCK_SECONDS = 60.0  # how long another process may hold the file
STORAGE_ERRORS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
}


def request_key(model: str, messages: Messages, sampling: Mapping[str, Any]) -> str:
    """A request's name in the cache: the SHA-256 of its JSON with sorted keys.

    The address is no part of it: a service that comes back elsewhere goes on with the same answers.
    """
    request = {"model": model, "messages": list(messages), "sampling": dict(sampling)}
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Answers by `request_key`, in one file that several processes may use.

    Not for several threads at a time.

    Args:
      path: the file, made with its folder if it is not there; on a local disk (SQLite's log needs one).

    Raises:
      ValueError: the file is there and is no such cache.
      OSError: it cannot be opened, here, or the disk is full, later; `filename` is the path.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = sqlite3.connect(
                path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, answer TEXT NOT NULL)"
            )
            self._connection.execute("SELECT request, answer FROM answers LIMIT 0")
        except sqlite3.DatabaseError as error:
            raise self._storage_error(error) or ValueError(
                f"{path}: expected a cache of answers, found: {error}"
            ) from error

    def get(self, key: str) -> Answer | None:
        """The answer to a request; None if there is none."""
        query = "SELECT answer FROM answers WHERE request = ?"
        row = self._connection.execute(query, (key,)).fetchone()
        return None if row is None else Answer(*json.loads(row[0]))

    def put(self, key: str, answer: Answer) -> Answer:
        """Keep an answer; returns the one that is kept: the first, if another process was faster."""
        try:
            self._connection.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, json.dumps(answer))
            )
        except sqlite3.OperationalError as error:
            if (storage := self._storage_error(error)) is None:
                raise
            raise storage from error
        return self.get(key) or answer

    def __len__(self) -> int:
        return self._connection.execute("SELECT count(*) FROM answers").fetchone()[0]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _storage_error(self, error: sqlite3.Error) -> OSError | None:
        number = STORAGE_ERRORS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        return None if number is None else OSError(number, str(error), str(self.path))
