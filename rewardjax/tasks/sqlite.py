"""Queries that a policy wrote, on a real SQLite that only lets them read.

The database is in memory, so there is no file to reach; an authoriser allows reading tables and a
few functions and nothing else; a budget of virtual-machine steps ends loops and products of tables;
lengths and rows are limited.
"""

import functools
import sqlite3
from collections import Counter
from typing import NamedTuple

FUNCTIONS = frozenset({"count", "max", "min", "avg", "sum", "total", "abs", "round", "length"})
LONGEST_QUERY = 10_000  # characters
LONGEST_VALUE = 100_000  # bytes of any string or blob on the way
STEPS_PER_CALL = 1000  # virtual-machine steps between two looks at the budget


class Outcome(NamedTuple):
    """What became of a query.

    Attributes:
      rows: the result in the database's order; None where the query was refused or failed.
      error: why there are no rows; empty where there are.
      items: the (table, column) pairs that it reads, by SQLite's own name resolution; a table that
        is read without a column has the column "".
    """

    rows: tuple[tuple, ...] | None
    error: str
    items: frozenset[tuple[str, str]]


class Database:
    """Tables of numbers and words in memory, and the queries that may be asked of them.

    Not for use from several threads. Outcomes are remembered: policies repeat themselves.

    Args:
      script: SQL that creates and fills the tables; trusted.
      steps: virtual-machine steps that a query may take.
      rows: rows that a result may have.
      remembered: number of outcomes kept.
    """

    def __init__(
        self, script: str, *, steps: int = 100_000, rows: int = 1000, remembered: int = 100_000
    ):
        self._connection = sqlite3.connect(":memory:")
        self._connection.executescript(script)
        self._connection.execute("PRAGMA query_only = ON")
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LONGEST_QUERY)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._connection.set_authorizer(self._authorise)
        self._connection.set_progress_handler(self._spend, STEPS_PER_CALL)
        self._steps, self._rows = steps, rows
        self._spent, self._items = 0, set[tuple[str, str]]()
        self.ask = functools.lru_cache(remembered)(self._ask)

    def _ask(self, query: str) -> Outcome:
        """Run one SELECT."""
        self._spent, self._items = 0, set()
        try:
            cursor = self._connection.execute(query)
            rows = cursor.fetchmany(self._rows + 1)
            cursor.close()
        # A lone surrogate cannot be encoded; text with a NUL is a ValueError in some versions.
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            return Outcome(None, str(error), frozenset(self._items))
        if cursor.description is None:
            return Outcome(None, "not a query", frozenset(self._items))
        if len(rows) > self._rows:
            return Outcome(None, f"more than {self._rows} rows", frozenset(self._items))
        return Outcome(tuple(rows), "", frozenset(self._items))

    def _authorise(self, action, first, second, database, trigger) -> int:
        if action == sqlite3.SQLITE_READ:
            self._items.add((first.lower(), second.lower()))
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_SELECT:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and second.lower() in FUNCTIONS:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    def _spend(self) -> int:
        self._spent += STEPS_PER_CALL
        return int(self._spent > self._steps)


def same_rows(found: Outcome, expected: Outcome, *, ordered: bool = False) -> bool:
    """Whether two results hold the same rows: as multisets, or in order if `ordered`.

    A refused query and an empty result are the same as nothing: both give False.
    """
    if not found.rows or not expected.rows:
        return False
    if ordered:
        return found.rows == expected.rows
    return Counter(found.rows) == Counter(expected.rows)
