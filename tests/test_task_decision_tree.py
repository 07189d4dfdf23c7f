import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.tasks.decision_tree import DecisionTree
from rewardjax.trajectory import respond

TASK = DecisionTree()
N = 400
PROMPTS = jax.jit(TASK.prompts, static_argnums=1)(jax.random.key(0), N)
demonstrations = jax.jit(TASK.demonstrations)
judge = jax.jit(TASK.judge)


def written(**settings):
    return respond(PROMPTS, *demonstrations(jax.random.key(1), PROMPTS, **settings))


def test_a_prompt_shows_a_key_for_each_decision():
    words = TASK.decode(PROMPTS.tokens[0]).split()
    assert (words[0], words[-1], len(words)) == ("<bos>", "?", TASK.prompt_length)
    assert [word[0] for word in words[1:-1]] == ["a", "b", "c"]
    expected = [TASK.table[j, int(word[1])] for j, word in enumerate(words[1:-1])]
    np.testing.assert_array_equal(PROMPTS.info["right"][0], expected)


def test_the_rules_are_permutations_that_the_seed_draws():
    np.testing.assert_array_equal(np.sort(TASK.table, axis=1), [[0, 1, 2, 3]] * 3)
    np.testing.assert_array_equal(DecisionTree().table, TASK.table)
    assert np.any(dataclasses.replace(TASK, rule_seed=1).table != TASK.table)
    assert len(set(TASK.vocabulary)) == len(TASK.vocabulary) == TASK.vocab_size


def test_a_teacher_is_right_and_has_one_wording():
    traj = written()
    np.testing.assert_array_equal(TASK.verify(traj), np.ones(N))
    tokens = np.asarray(traj.tokens[:, TASK.prompt_length :])
    others = [i for i in range(TASK.length) if i not in TASK.decisions]
    assert np.all(tokens[:, others] == tokens[0, others])
    assert TASK.decode(tokens[0]).split()[-1] == "<eos>"


def test_accuracy_and_paraphrase_are_rates():
    traj = written(accuracy=0.4, paraphrase=0.2)
    right, wrong = judge(traj)
    np.testing.assert_array_equal(jnp.sum(right | wrong, axis=1), [3] * N)
    assert abs(float(jnp.mean(jnp.sum(right, axis=1))) / 3 - 0.4) < 0.06
    np.testing.assert_array_equal(TASK.verify(traj), jnp.sum(right, axis=1) == 3)
    words = np.asarray(traj.mask & ~(right | wrong))[:, TASK.prompt_length : -1]
    changed = np.asarray(traj.tokens != written().tokens)[:, TASK.prompt_length : -1]
    assert abs(changed[words].mean() - 0.2) < 0.03


def test_judged_by_hand():
    prompts = jax.tree.map(lambda x: x[:3], PROMPTS)
    tokens, valid = demonstrations(jax.random.key(2), prompts)
    last = TASK.decisions[-1]
    other = (tokens[1, last] - TASK.first_choice + 1) % TASK.choices + TASK.first_choice
    tokens = tokens.at[1, last].set(other)
    valid = valid.at[2, last:].set(False)  # cut off before the last decision
    traj = respond(prompts, tokens, valid)
    right, wrong = judge(traj)
    start = TASK.prompt_length
    assert np.flatnonzero(right[0]).tolist() == [start + 2, start + 5, start + 8]
    assert np.flatnonzero(right[1]).tolist() == [start + 2, start + 5]
    assert np.flatnonzero(wrong[1]).tolist() == [start + 8]
    assert not np.any(wrong[2])
    np.testing.assert_array_equal(TASK.verify(traj), [1, 0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choices": 1}, "choices: expected at least 2, found 1"),
        ({"decisions": ()}, "decisions: expected one or more"),
        ({"decisions": (5, 2)}, r"found \(5, 2\)"),
        ({"decisions": (2, 11)}, "from 0 to 10"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DecisionTree(**settings)


def test_unknown_ids_are_refused():
    with pytest.raises(ValueError, match="ids: expected 0 to"):
        TASK.decode([TASK.vocab_size])
