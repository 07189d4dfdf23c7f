"""Pairs to judge: what is better and why, the cue, the positions, and the teacher's judgements."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.rewards.verdict import parse_verdict
from rewardjax.tasks.pair_judgement import CRITERIA, TOKEN, PairJudgement
from rewardjax.trajectory import respond

TASK = PairJudgement()
N = 600
draw = jax.jit(PairJudgement.prompts, static_argnums=(0, 2))
traces = jax.jit(PairJudgement.traces, static_argnums=0)
PROMPTS = draw(TASK, jax.random.key(0), N)
INFO = jax.tree.map(np.asarray, PROMPTS.info)
LENGTHS = (INFO["answers"] != TASK.pad).sum(axis=2)


def merit(row):
    """What each answer of a row is worth, from its tokens."""
    query, answers = INFO["query"][row], INFO["answers"][row]
    if INFO["reasoning"][row]:
        right = (query - TASK.first_digit).sum() % TASK.modulus
        return [int(answer[0] - TASK.first_digit == right) for answer in answers]
    return [len(set(query[:CRITERIA]) & set(answer)) for answer in answers]


def longer_wins(prompts):
    lengths = np.asarray(prompts.info["answers"] != TASK.pad).sum(axis=2)
    return (np.argmax(lengths, axis=1) == np.asarray(prompts.info["label"])).mean()


def test_the_label_is_the_answer_of_more_merit():
    for row in range(N):
        first, second = merit(row)
        assert first != second
        assert INFO["label"][row] == int(second > first)


def test_a_and_b_win_equally_often_with_both_types():
    assert INFO["label"].mean() == 0.5
    for kind in (0, 1):
        assert abs(INFO["label"][INFO["reasoning"] == kind].mean() - 0.5) < 0.08
    assert abs(INFO["reasoning"].mean() - TASK.reasoning) < 0.06


def test_the_cue_follows_the_label_and_is_turned_round_on_the_hard_split():
    assert np.all(LENGTHS[:, 0] != LENGTHS[:, 1])
    assert abs(longer_wins(PROMPTS) - 0.85) < 0.045
    assert abs(longer_wins(draw(TASK.hard, jax.random.key(1), N)) - 0.15) < 0.045
    assert longer_wins(draw(dataclasses.replace(TASK, cue=1.0), jax.random.key(1), N)) == 1


def test_a_prompt_reads_as_text():
    words = TASK.decode(PROMPTS.tokens[0]).split()
    assert words[:2] == ["<bos>", "A:"]
    assert words[-1] == "think"
    assert words.index("B:") == 2 + LENGTHS[0, 0]
    assert PROMPTS.tokens.shape == (N, TASK.prompt_length)
    assert int(jnp.max(jnp.sum(PROMPTS.valid, axis=1))) <= TASK.prompt_length


def test_traces_parse_and_end_with_the_right_verdict():
    traj = respond(PROMPTS, *traces(TASK, jax.random.key(1), PROMPTS))
    found = parse_verdict(traj.tokens, traj.mask, TASK.tags, tail=3)
    np.testing.assert_array_equal(found, PROMPTS.info["label"])
    right, called = TASK.solved(traj)
    np.testing.assert_array_equal(right, called)
    np.testing.assert_array_equal(called, INFO["reasoning"])
    for row, text in enumerate(map(TASK.decode, np.asarray(traj.tokens[:8]))):
        words = text.split(" think ")[1].split()
        kind, opening = (
            ("Reasoning", "<solution>") if INFO["reasoning"][row] else ("Chat", "<rubric>")
        )
        assert words[:2] == [f"<type>{kind}</type>", opening]
        assert words.index("</" + opening[1:]) < words.index("<eval>") < words.index("<answer>")
        evaluation = words[words.index("<eval>") : words.index("</eval>")]
        sides = " ".join(evaluation).split("B:")
        assert [side.split().count("hit") for side in sides] == merit(row)


def test_errors_are_random_and_the_verdict_follows_from_what_is_written():
    traj = respond(PROMPTS, *traces(TASK, jax.random.key(1), PROMPTS, error_rate=1.0))
    found = np.asarray(parse_verdict(traj.tokens, traj.mask, TASK.tags, tail=3))
    assert np.all(found >= 0)
    assert abs((found == INFO["label"]).mean() - 0.5) < 0.08
    right, called = TASK.solved(traj)
    assert abs(float(jnp.sum(right) / jnp.sum(called)) - 1 / TASK.modulus) < 0.07
    for row, text in enumerate(map(TASK.decode, np.asarray(traj.tokens[:50]))):
        marks = [side.split().count("hit") for side in text.split("<eval>")[1].split("B:")]
        assert marks[0] == marks[1] or found[row] == int(marks[1] > marks[0])


def test_the_solution_is_what_the_judge_wrote_itself():
    tokens, valid = traces(TASK, jax.random.key(1), PROMPTS)
    chosen = np.flatnonzero(INFO["reasoning"])[:2]
    prompts, tokens, valid = jax.tree.map(lambda x: x[chosen], (PROMPTS, tokens, valid))
    end = int(np.flatnonzero(np.asarray(tokens[0]) == TOKEN["</solution>"])[0])
    wrong = (tokens[0, end - 1] - TASK.first_digit + 1) % TASK.modulus + TASK.first_digit
    tokens = tokens.at[0, end - 1].set(wrong)
    valid = valid.at[1, end:].set(False)  # cut off before the solution ends
    right, called = TASK.solved(respond(prompts, tokens, valid))
    assert called.tolist() == [True, True]
    assert right.tolist() == [False, False]


def test_bare_verdicts():
    prompts = TASK.prompts(jax.random.key(0), N, think=jnp.arange(N) % 4 >= 2)
    assert [TASK.decode(row).split()[-1] for row in prompts.tokens[1:3]] == ["decide", "think"]
    tokens, valid = traces(TASK, jax.random.key(1), prompts)
    assert [TASK.decode(row) for row in tokens[:2]] == ["[[A]] <eos>", "[[B]] <eos>"]
    assert jnp.sum(valid, axis=1)[:2].tolist() == [2, 2]
    assert int(jnp.min(jnp.sum(valid, axis=1)[2:4])) > 10


def test_the_swap_exchanges_answers_and_label_and_nothing_else():
    swapped = TASK.swapped(PROMPTS)
    np.testing.assert_array_equal(swapped.info["answers"], INFO["answers"][:, ::-1])
    np.testing.assert_array_equal(swapped.info["label"], 1 - INFO["label"])
    np.testing.assert_array_equal(swapped.info["query"], INFO["query"])
    np.testing.assert_array_equal(TASK.swapped(swapped).tokens, PROMPTS.tokens)
    assert np.any(np.asarray(swapped.tokens != PROMPTS.tokens))


def test_single_answers_put_the_better_one_first():
    tokens, valid = TASK.single_answers(PROMPTS)
    row = 1  # B is better
    better, worse = (TASK.decode(side).split("A:")[1] for side in tokens[row])
    assert better.split() == TASK.decode(INFO["answers"][row, 1]).split()
    assert worse.split() == TASK.decode(INFO["answers"][row, 0]).split()
    np.testing.assert_array_equal(valid, tokens != TASK.pad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modulus": 1}, "modulus: expected at least 2, found 1"),
        ({"digits": 1}, "digits: expected at least 2, found 1"),
        ({"words": ("a", "b")}, "words: expected more than 2"),
        ({"fillers": ()}, "fillers: expected at least one"),
        ({"shorter": (1, 3)}, "shorter, longer: expected 2 <= fewest"),
        ({"longer": (3, 5)}, "shorter, longer: expected 2 <= fewest"),
        ({"cue": 1.2}, "cue: expected 0 to 1, found 1.2"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PairJudgement(**settings)
