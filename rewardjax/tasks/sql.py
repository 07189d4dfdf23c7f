"""Templated questions on small generated SQLite databases of players and their teams.

A prompt names an aggregate, a column and a condition in everyday words, which have to be linked to
the schema: `how-many years with funds above 5 ?`. The reference joins the tables where column and
condition are in different ones. Some compositions are held out, though all of their words are seen.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rewardjax.tasks.spelling import spell
from rewardjax.tasks.sqlite import Database
from rewardjax.trajectory import Prompts, Trajectory

AGGREGATES = {
    "": ("list", "show"),
    "COUNT": ("how-many", "count-of"),
    "MAX": ("highest", "largest"),
    "MIN": ("lowest", "smallest"),
    "AVG": ("mean", "average"),
    "SUM": ("sum-of", "total"),
}
COLUMNS = {
    "players.age": ("age", "years", "birthdays"),
    "players.score": ("score", "points", "result"),
    "teams.size": ("size", "members", "headcount"),
    "teams.budget": ("budget", "money", "funds"),
    "teams.rank": ("rank", "place", "standing"),
}
OPERATORS = {">": ("above", "over"), "<": ("below", "under"), ">=": ("at-least", "from")}
JOIN = "players JOIN teams ON players.team = teams.id"
SPECIAL = ("<pad>", "<bos>", "<eos>")
TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
SYNTAX = ("SELECT", "FROM", "JOIN", "ON", "WHERE", "(", ")", "=")
KEYS = ("players.id", "players.team", "teams.id")
TEAMS, PLAYERS = 10, 30
VALUES = (2, 8)  # so that every condition leaves some rows, and drops some


class Question(NamedTuple):
    """What is asked: an aggregate, a column, and a condition `column operator value`."""

    aggregate: str
    column: str
    condition: str
    operator: str

    def query(self, value: int) -> str:
        """The reference, its tokens parted by single blanks."""
        column = f"{self.aggregate} ( {self.column} )" if self.aggregate else self.column
        tables = {name.split(".")[0] for name in (self.column, self.condition)}
        source = JOIN if len(tables) == 2 else tables.pop()
        return f"SELECT {column} FROM {source} WHERE {self.condition} {self.operator} {value}"

    @property
    def held_out(self) -> bool:
        """A quarter of the pairs of column and condition, in turns over the aggregates."""
        columns, aggregates = list(COLUMNS), list(AGGREGATES)
        turn = columns.index(self.column) + 2 * columns.index(self.condition)
        return (turn + aggregates.index(self.aggregate)) % 4 == 0


QUESTIONS = tuple(
    Question(*parts) for parts in itertools.product(AGGREGATES, COLUMNS, COLUMNS, OPERATORS)
)


@dataclass(frozen=True)
class SQLWorld:
    """The task and its vocabulary. `info` of its prompts: `question`, `value` and `database`.

    Attributes:
      databases: that questions are asked of; all with the same schema.
      seed: draws their rows.
    """

    databases: int = 4
    seed: int = 0

    pad = 0
    bos = 1
    eos = 2
    prompt_length = 8

    @functools.cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token as text, in the order of its id."""
        words = [
            w for table in (AGGREGATES, COLUMNS, OPERATORS) for ws in table.values() for w in ws
        ]
        names = [*filter(None, AGGREGATES), *COLUMNS, *KEYS, "players", "teams", *OPERATORS]
        numbers = [str(number) for number in range(10)]
        return (*SPECIAL, *TAGS, *SYNTAX, *names, *numbers, "with", "?", *words)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.vocabulary)

    @functools.cached_property
    def max_response(self) -> int:
        """Tokens of the longest reference response, `eos` included."""
        return self._references[0].shape[-1]

    def decode(self, ids: Int[Array, "time"] | np.ndarray | list[int]) -> str:
        """The tokens as text, padding left out.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        return spell(ids, self.vocabulary, self.pad)

    def prompts(self, key: Key[Array, ""], n: int, *, held_out: bool = False) -> Prompts:
        """Draw `n` questions of the training compositions, or of those `held_out`."""
        question_key, value_key, database_key, word_key = jax.random.split(key, 4)
        known = jnp.array([i for i, q in enumerate(QUESTIONS) if q.held_out == held_out])
        question = known[jax.random.randint(question_key, (n,), 0, known.size)]
        value = jax.random.randint(value_key, (n,), *VALUES)
        pick = jax.random.randint(word_key, (n, 4), 0, 6)
        tables = zip(self._words, jnp.moveaxis(pick, 1, 0), strict=True)
        aggregate, column, condition, operator = (
            jnp.asarray(table)[question, choice] for table, choice in tables
        )
        bos, with_, mark = (jnp.full(n, self._id(word)) for word in ("<bos>", "with", "?"))
        number = self._id("0") + value
        parts = [bos, aggregate, column, with_, condition, operator, number, mark]
        tokens = jnp.stack(parts, axis=1)
        database = jax.random.randint(database_key, (n,), 0, self.databases)
        info = {"question": question, "value": value, "database": database}
        return Prompts(tokens, jnp.ones_like(tokens, bool), info)

    def answers(
        self, prompts: Prompts, question: Int[Array, "n"]
    ) -> tuple[Int[Array, "n response"], Bool[Array, "n response"]]:
        """Responses in good form, `(tokens, valid)`: the columns meant, then a query.

        They answer `question`, an index into `QUESTIONS`, with the value of the prompt.
        """
        tokens, valid = (jnp.asarray(x)[question] for x in self._references)
        value = self._id("0") + prompts.info["value"][:, None]
        return jnp.where(tokens < 0, value, tokens), valid

    def demonstrations(
        self, key: Key[Array, ""], prompts: Prompts
    ) -> tuple[Int[Array, "n response"], Bool[Array, "n response"]]:
        """The reference responses, `(tokens, valid)`; nothing is drawn with `key`."""
        return self.answers(prompts, prompts.info["question"])

    def agreement(self, asked: Int[Array, "n"], answered: Int[Array, "n"]) -> Float[Array, "n"]:
        """The share of a question's four parts that another has too."""
        parts = jnp.asarray(self._parts)
        return jnp.mean(parts[asked] == parts[answered], axis=1)

    def responses(self, traj: Trajectory) -> list[str]:
        """What the policy wrote in each row of a trajectory on the host, `eos` left out."""
        tokens, mask = np.asarray(traj.actions), np.asarray(traj.mask)
        return [
            self.decode(row[acted & (row != self.eos)])
            for row, acted in zip(tokens, mask, strict=True)
        ]

    def references(self, traj: Trajectory) -> list[str]:
        """The reference query of each row of a trajectory on the host."""
        asked = zip(*(np.asarray(traj.info[k]) for k in ("question", "value")), strict=True)
        return [QUESTIONS[question].query(int(value)) for question, value in asked]

    def open_databases(self) -> list[Database]:
        """The databases, in memory."""
        generator = np.random.default_rng(self.seed)
        return [Database(_script(generator)) for _ in range(self.databases)]

    def _id(self, word: str) -> int:
        return self.vocabulary.index(word)

    @functools.cached_property
    def _parts(self) -> Int[np.ndarray, "questions four"]:
        """Each question's parts as numbers."""
        tables = (AGGREGATES, COLUMNS, COLUMNS, OPERATORS)
        known = [list(table) for table in tables]
        return np.array(
            [[names.index(part) for names, part in zip(known, q, strict=True)] for q in QUESTIONS]
        )

    @functools.cached_property
    def _words(self) -> tuple[Int[np.ndarray, "questions six"], ...]:
        """For each place of a prompt, the ids of each question's words, repeated to six."""
        tables: Sequence[Mapping[str, Sequence[str]]] = (AGGREGATES, COLUMNS, COLUMNS, OPERATORS)
        places = []
        for place, table in enumerate(tables):
            known = [[self._id(word) for word in table[question[place]]] for question in QUESTIONS]
            places.append(np.array([ids * (6 // len(ids)) for ids in known]))
        return tuple(places)

    @functools.cached_property
    def _references(
        self,
    ) -> tuple[Int[np.ndarray, "questions response"], Bool[np.ndarray, "questions response"]]:
        """Each question's reference response, -1 where its value stands, and where it has tokens."""
        rows = []
        for question in QUESTIONS:
            thought = f"{question.column} {question.condition}"
            text = (
                f"<reasoning> {thought} </reasoning> <answer> {question.query(0)} </answer> <eos>"
            )
            rows.append([-1 if word == "0" else self._id(word) for word in text.split()])
        longest = max(map(len, rows))
        padded = [row + [self.pad] * (longest - len(row)) for row in rows]
        return np.array(padded), np.array([np.arange(longest) < len(row) for row in rows])


def _script(generator: np.random.Generator) -> str:
    """A database in which every number from 0 to 9 is in every column, as often as every other."""

    def column(rows: int) -> list[int]:
        return generator.permutation(np.arange(rows) % 10).tolist()

    teams = zip(range(TEAMS), column(TEAMS), column(TEAMS), column(TEAMS), strict=True)
    players = zip(range(PLAYERS), column(PLAYERS), column(PLAYERS), column(PLAYERS), strict=True)
    lines = [
        "CREATE TABLE teams (id INTEGER PRIMARY KEY, size INTEGER, budget INTEGER, rank INTEGER);",
        "CREATE TABLE players (id INTEGER PRIMARY KEY, age INTEGER, score INTEGER, team INTEGER);",
    ]
    lines += [f"INSERT INTO teams VALUES {row};" for row in teams]
    lines += [f"INSERT INTO players VALUES {row};" for row in players]
    return "\n".join(lines)
