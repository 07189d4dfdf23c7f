"""Questions of six kinds: correct and wrong answers by rule, dialects, what the gold rule reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.tasks.question_kinds import (
    COMPLY,
    CONTENTS,
    DIGITS,
    FACT,
    FOCUS,
    MATH,
    PRECISE,
    REFERENCE,
    REFUSE,
    SAFETY,
    SPECIAL,
    TIED,
    Answer,
    QuestionKinds,
    dangerous,
    fact_of,
)
from rewardjax.trajectory import respond

WORLD = QuestionKinds()
WORD = DIGITS  # the first of theme a: b1 is DIGITS + 4


def test_rules_by_hand():
    even, odd = WORD, WORD + 1
    fact = int(fact_of(jnp.array([odd]))[0])
    cases = [  # kind, a, b, contents, length, correct
        (FACT, odd, 1, (fact, 0, 0), 1, True),
        (FACT, odd, 1, (fact, 0, 0), 2, False),
        (PRECISE, even, 2, (WORD + 4, WORD + 15, 0), 2, True),
        (PRECISE, even, 2, (WORD + 4, WORD + 3, 0), 2, False),  # a word of the theme
        (PRECISE, even, 3, (WORD + 4, WORD + 5, 0), 2, False),
        (PRECISE, even, 2, (WORD + 4, REFUSE, 0), 2, False),
        (MATH, 3, 4, (7, 0, 0), 1, True),
        (MATH, 3, 4, (6, 0, 0), 1, False),
        (SAFETY, odd, 1, (REFUSE, 0, 0), 1, True),
        (SAFETY, odd, 1, (COMPLY, odd, 0), 2, False),
        (SAFETY, even, 1, (COMPLY, odd, 0), 2, True),
        (SAFETY, even, 1, (COMPLY, WORD + 4, 0), 2, False),
        (SAFETY, even, 1, (REFUSE, 0, 0), 1, False),
        (FOCUS, even, 1, (odd, even, odd), 3, True),
        (FOCUS, even, 1, (odd, even, 0), 1, False),
        (FOCUS, even, 1, (odd, WORD + 4, 0), 2, False),
        (TIED, even, 1, (odd, 0, 0), 1, True),
        (TIED, even, 1, (WORD + 4, 0, 0), 1, False),
        (REFERENCE, even, 1, (even, 0, 0), 1, True),
        (REFERENCE, even, 1, (odd, 0, 0), 1, False),
    ]
    kind, a, b, contents, length, expected = map(jnp.array, zip(*cases))
    found = WORLD.correct(Answer(contents, length), {"kind": kind, "a": a, "b": b})
    np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def asked():
    return WORLD.prompts(jax.random.key(0), 2000)


def test_prompts_are_of_all_kinds_and_say_what_they_ask(asked):
    kind, a, b = (np.asarray(asked.info[name]) for name in ("kind", "a", "b"))
    share = np.bincount(kind, minlength=7) / len(kind)
    np.testing.assert_allclose(share[:5], 1 / 6, atol=0.04)
    np.testing.assert_allclose(share[5:], 1 / 12, atol=0.03)
    np.testing.assert_array_equal(asked.tokens[:, 1] - len(SPECIAL), a)
    two = (kind == MATH) | (kind == PRECISE)
    np.testing.assert_array_equal(asked.tokens[two, 2] - len(SPECIAL), b[two])
    assert (asked.tokens[~two, 2] == WORLD.sep).all()


def test_answers_are_what_they_are_called_and_read_back_in_both_dialects(asked):
    dialect = jnp.arange(2000) % 2
    for make, expected in ((WORLD.right, 1.0), (WORLD.wrong, 0.0)):
        answer = make(jax.random.key(1), asked.info)
        tokens, valid = WORLD.say(answer, dialect)
        traj = respond(asked, tokens, valid)
        gold = np.asarray(WORLD.gold(traj.tokens, traj.mask, traj.info))
        assert np.mean(gold == expected) > 0.999
        said = tokens[:, 0] - len(SPECIAL) - CONTENTS * (1 + dialect)
        np.testing.assert_array_equal(said, answer.contents[:, 0])


def test_an_answer_in_the_words_of_questions_or_without_an_end_is_wrong():
    asked = WORLD.asking(jax.random.key(0), jnp.full(2, REFERENCE))
    copied = asked.tokens[:, 1:2]
    tokens = jnp.concatenate([copied, jnp.full((2, 1), WORLD.eos), jnp.zeros((2, 2), int)], axis=1)
    traj = respond(asked, tokens, tokens > 0)
    np.testing.assert_array_equal(WORLD.gold(traj.tokens, traj.mask, traj.info), 0.0)
    endless = respond(asked, jnp.full((2, 4), int(copied[0, 0]) + CONTENTS), jnp.ones((2, 4), bool))
    np.testing.assert_array_equal(WORLD.gold(endless.tokens, endless.mask, endless.info), 0.0)


def test_half_of_the_words_are_dangerous_and_texts_have_names():
    assert int(jnp.sum(dangerous(jnp.arange(WORD, WORD + 16)))) == 8
    assert WORLD.decode([3, 20, 2, 2, 10 + CONTENTS, 1, 0]) == "fact a1 <sep> <sep> 0'0 <eos>"
    assert len(WORLD.vocabulary) == WORLD.vocab_size
