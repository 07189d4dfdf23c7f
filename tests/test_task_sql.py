"""Questions on generated databases, the sandbox that answers them, and the partial rewards."""

import re

import jax
import numpy as np
import pytest

from rewardjax.rewards.sql import PARTS, answer_of, bigrams, jaccard, query_rewards
from rewardjax.tasks.sql import AGGREGATES, COLUMNS, OPERATORS, QUESTIONS, VALUES, SQLWorld
from rewardjax.tasks.sqlite import Database, same_rows
from rewardjax.trajectory import respond

WORLD = SQLWorld()
DATABASES = WORLD.open_databases()
TABLE = "CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (2, 'y');"


def written(query, thought="players.age"):
    return f"<reasoning> {thought} </reasoning> <answer> {query} </answer>"


def test_the_reference_of_every_question_gets_the_full_reward():
    for question in QUESTIONS:
        for value in range(*VALUES):
            query = question.query(value)
            for database in DATABASES:
                parts = query_rewards(written(query), query, database)
                assert parts == dict.fromkeys(PARTS, 1.0), (query, parts)


def test_conditions_drop_some_rows():
    whole = DATABASES[0].ask("SELECT COUNT(id) FROM players").rows[0][0]
    for question in QUESTIONS:
        if question.aggregate == "COUNT" and question.column.startswith("players"):
            for value in range(*VALUES):
                assert 0 < DATABASES[0].ask(question.query(value)).rows[0][0] < whole


@pytest.mark.parametrize("held_out", [False, True])
def test_demonstrations_spell_the_reference_of_their_prompt(held_out):
    prompts = WORLD.prompts(jax.random.key(0), 64, held_out=held_out)
    traj = jax.device_get(respond(prompts, *WORLD.demonstrations(jax.random.key(1), prompts)))
    assert all(QUESTIONS[i].held_out == held_out for i in traj.info["question"])
    for response, reference in zip(WORLD.responses(traj), WORLD.references(traj), strict=True):
        assert answer_of(response) == (reference, True)
    assert WORLD.max_response >= np.max(traj.lengths)


def test_prompts_name_their_question_in_words():
    prompts = jax.device_get(WORLD.prompts(jax.random.key(0), 200))
    seen = set()
    for row, question, value in zip(
        prompts.tokens, prompts.info["question"], prompts.info["value"], strict=True
    ):
        _, aggregate, column, _, condition, operator, number, _ = WORLD.decode(row).split()
        asked = QUESTIONS[question]
        assert aggregate in AGGREGATES[asked.aggregate]
        assert column in COLUMNS[asked.column]
        assert condition in COLUMNS[asked.condition]
        assert operator in OPERATORS[asked.operator]
        assert int(number) == value
        seen |= {column, condition}
    assert seen == {word for words in COLUMNS.values() for word in words}


def test_another_questions_answer_is_in_good_form_and_agrees_in_part():
    prompts = WORLD.prompts(jax.random.key(0), 64)
    other = jax.random.randint(jax.random.key(1), (64,), 0, len(QUESTIONS))
    traj = jax.device_get(respond(prompts, *WORLD.answers(prompts, other)))
    agreement = WORLD.agreement(prompts.info["question"], other)
    for i, response in enumerate(WORLD.responses(traj)):
        asked, answered = QUESTIONS[traj.info["question"][i]], QUESTIONS[other[i]]
        assert answer_of(response) == (answered.query(int(traj.info["value"][i])), True)
        shared = sum(a == b for a, b in zip(asked, answered, strict=True))
        assert agreement[i] == shared / 4


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("DROP TABLE t", "not authorized"),
        ("INSERT INTO t VALUES (3, 'z')", "not authorized"),
        ("ATTACH 'file.db' AS other", "not authorized"),
        ("PRAGMA query_only = OFF", "not authorized"),
        ("VACUUM INTO 'copy.db'", "authorization denied"),
        ("SELECT load_extension('x')", "not authorized"),
        ("SELECT zeroblob(1000000000)", "not authorized"),
        (
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
            "not auth",
        ),
        (
            "SELECT COUNT(p.a) FROM t p, t q, t r, t s, t u, t v, t w, t x, t y, t z, t k",
            "interrupted",
        ),
        ("SELECT p.a FROM t p, t q, t r, t s, t u", "more than 100 rows"),
        ("SELECT a FROM t; DROP TABLE t", "one statement"),
        ("SELECT missing FROM t", "no such column"),
        ("SELEC a FROM t", "syntax error"),
        ("SELECT '" + "x" * 20_000 + "'", "too large|too big|too long"),
        ("", "not a query"),
        ("\ud800", "codec"),
        ("SELECT 1\0", "null"),
    ],
)
def test_what_a_query_may_not_do(query, error):
    database = Database(TABLE, steps=20_000, rows=100)
    outcome = database.ask(query)
    assert outcome.rows is None
    assert re.search(error, outcome.error), outcome.error
    assert database.ask("SELECT COUNT(a) FROM t").rows == ((3,),)


def test_items_are_what_the_query_reads():
    database = Database(TABLE)
    assert database.ask("SELECT x.a FROM t AS x WHERE X.B = 'y'").items == {("t", "a"), ("t", "b")}
    assert database.ask("SELECT COUNT(*) FROM t").items == {("t", "")}


def test_rows_are_compared_as_a_multiset_unless_ordered():
    database = Database(TABLE)
    up, down = (database.ask(f"SELECT a FROM t ORDER BY a {way}") for way in ("ASC", "DESC"))
    assert same_rows(up, down)
    assert not same_rows(up, down, ordered=True)
    assert same_rows(up, up, ordered=True)
    assert not same_rows(up, database.ask("SELECT DISTINCT a FROM t"))
    empty, refused = database.ask("SELECT a FROM t WHERE a > 9"), database.ask("SELECT c FROM t")
    assert empty.rows == ()
    assert not same_rows(empty, empty)
    assert not same_rows(refused, refused)


@pytest.mark.parametrize(
    ("response", "query", "proper"),
    [
        ("<reasoning> a </reasoning> <answer> SELECT 1 </answer>", "SELECT 1", True),
        ("<reasoning></reasoning><answer>SELECT 1</answer>", "SELECT 1", True),
        ("<answer> SELECT 1 </answer>", "SELECT 1", False),
        ("<reasoning> a </reasoning> <answer> SELECT 1 </answer> more", "SELECT 1", False),
        ("<answer> 1 </answer> <answer> 2 </answer>", "2", False),
        ("<reasoning> <answer> 1 </answer> </reasoning>", "1", False),
        ("<reasoning> a </reasoning> <answer> SELECT 1", None, False),
        ("", None, False),
    ],
)
def test_the_answer_and_its_form(response, query, proper):
    assert answer_of(response) == (query, proper)


def test_partial_rewards_by_hand():
    reference = "SELECT MAX ( players.age ) FROM players WHERE players.score > 5"
    other = "select max(players.age) from players where players.age > 5"
    parts = query_rewards(f"<answer>{other}</answer>", reference, DATABASES[0])
    # Reads one of the two columns; two bigrams hold the wrong one.
    assert parts["schema"] == 0.5
    assert parts["syntax"] == 1.0
    assert parts["format"] == 0.0
    left, right = bigrams(other), bigrams(reference)
    assert len(left & right) == len(left) - 2
    assert parts["ngram"] == pytest.approx(len(left & right) / len(left | right))
    unresolved = written("SELECT players.age FROM players WHERE teams.size > 5")
    broken = query_rewards(unresolved, reference, DATABASES[0])
    assert broken["schema"] == broken["syntax"] == broken["execution"] == 0.0
    assert broken["ngram"] > 0
    assert query_rewards("nothing", reference, DATABASES[0]) == dict.fromkeys(PARTS, 0.0)


def test_jaccard():
    assert jaccard({1, 2}, {2, 3}) == pytest.approx(1 / 3)
    assert jaccard(set(), set()) == 1.0
    assert jaccard({1}, set()) == 0.0
