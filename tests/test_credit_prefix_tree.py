"""Prefix-tree credit against the paper's algorithm, one response and one token at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import credit
from rewardjax.trajectory import Trajectory, last_step

EOS = 9
values = jax.jit(credit.prefix_tree_values, static_argnames="group_size")
tempo = jax.jit(credit.prefix_tree, static_argnames=("group_size", "normalise"))


def layout(responses, prompts, columns, garbage):
    """Rows as a sampler lays them out: prompts padded on the left, responses on the right."""
    width = max(prompts)
    tokens = garbage.integers(0, 4, (len(responses), width + columns)).astype(np.int32)
    mask, valid = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
    for row, (response, prompt) in enumerate(zip(responses, prompts)):
        tokens[row, width : width + len(response)] = response
        mask[row, width : width + len(response)] = True
        valid[row, width - prompt : width + len(response)] = True
    return Trajectory(
        jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(valid), jnp.zeros(tokens.shape)
    )


def trajectory(responses, prompts=None, columns=6, seed=0):
    prompts = [3] * len(responses) if prompts is None else prompts
    return layout(responses, prompts, columns, np.random.default_rng(seed))


def rewarded(traj, outcomes):
    """The outcomes as rewards on each row's last step."""
    return jnp.where(last_step(traj.mask), jnp.asarray(outcomes, jnp.float32)[:, None], 0.0)


def literal(responses, outcomes, weight=1.0, normalise=True):
    """The paper's loop over one group: the advantages of each response, as lists."""
    r = np.asarray(outcomes, np.float64)
    scale = np.std(r, ddof=1) + 1e-6 if normalise else 1.0
    found = []
    for i, response in enumerate(responses):
        previous, row = list(range(len(responses))), []
        for t, token in enumerate(response):
            branch = [k for k in previous if len(responses[k]) > t and responses[k][t] == token]
            difference = np.mean(r[branch]) - np.mean(r[previous])
            row.append((weight * (r[i] - np.mean(r)) + difference) / scale)
            previous = branch
        found.append(row)
    return found


def by_row(array, mask):
    return [np.asarray(array)[row][np.asarray(mask)[row]] for row in range(len(mask))]


def draw(rng, size):
    """A group over a small alphabet: long shared prefixes, duplicates, different lengths."""
    responses = []
    for _ in range(size):
        if responses and rng.random() < 0.25:
            responses.append(list(responses[rng.integers(len(responses))]))
            continue
        ended = rng.random() < 0.7
        body = rng.integers(0, 2, rng.integers(1, 6)).tolist()
        responses.append([*body, EOS] if ended else body)
    return responses


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("settings", [{}, {"outcome_weight": 0.0}, {"normalise": False}])
def test_the_advantage_is_the_papers(seed, settings):
    rng = np.random.default_rng(seed)
    groups = [draw(rng, 5) for _ in range(3)]
    outcomes = rng.normal(size=(3, 5)) if seed % 2 else rng.permuted([[0, 0, 1, 1, 1]] * 3, axis=1)
    responses = [row for group in groups for row in group]
    traj = trajectory(responses, rng.integers(1, 4, 15).tolist(), seed=seed)
    found = tempo(rewarded(traj, outcomes.ravel()), traj, group_size=5, **settings)
    weight, normalise = settings.get("outcome_weight", 1.0), settings.get("normalise", True)
    expected = [row for g, r in zip(groups, outcomes) for row in literal(g, r, weight, normalise)]
    for actual, wanted in zip(by_row(found, traj.mask), expected):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(found)[~np.asarray(traj.mask)], 0.0)


TREE = [[0, 1, EOS], [0, 1, EOS], [0, 2, 3, EOS], [1, 1, EOS]]


def test_values_by_hand():
    traj = trajectory(TREE)
    before, after = values(traj.tokens, traj.mask, jnp.array([4.0, 2.0, 0.0, 10.0]), group_size=4)
    # root 16 / 4; "0" 6 / 3; "0 1" and "0 1 eos" 6 / 2, two duplicates; the others are alone.
    after_rows = [[2, 3, 3], [2, 3, 3], [2, 0, 0, 0], [10, 10, 10]]
    before_rows = [[4, 2, 3], [4, 2, 3], [4, 2, 0, 0], [4, 10, 10]]
    for array, rows in [(before, before_rows), (after, after_rows)]:
        for actual, wanted in zip(by_row(array, traj.mask), rows):
            np.testing.assert_allclose(actual, wanted, rtol=1e-6)
        np.testing.assert_array_equal(np.asarray(array)[~np.asarray(traj.mask)], 0.0)


def test_advantages_by_hand():
    traj = trajectory(TREE)
    rewards = rewarded(traj, [1.0, 1.0, 0.0, 0.0])
    found = tempo(rewards, traj, group_size=4, normalise=False)
    # mean 1/2, V("0") = 2/3: +1/6 at the first token, +1/3 or -2/3 where the three part.
    rows = [[2 / 3, 5 / 6, 1 / 2]] * 2 + [[-1 / 3, -7 / 6, -1 / 2, -1 / 2], [-1, -1 / 2, -1 / 2]]
    for actual, wanted in zip(by_row(found, traj.mask), rows):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5)
    spread = np.sqrt(1 / 3)  # unbiased: 4 (1/2)^2 / 3
    scaled = tempo(rewards, traj, group_size=4)
    np.testing.assert_allclose(scaled, np.asarray(found) / spread, rtol=1e-5, atol=1e-7)


def test_padding_is_no_token():
    """The first row ends where the second goes on with the id that pads the first."""
    traj = trajectory([[1, 2], [1, 2, 0, 0]])
    tokens = traj.tokens.at[0, 5:].set(0)
    before, after = values(tokens, traj.mask, jnp.array([0.0, 1.0]), group_size=2)
    np.testing.assert_allclose(after[1, 3:7], [0.5, 0.5, 1.0, 1.0])
    np.testing.assert_allclose(after[0, 3:7], [0.5, 0.5, 0.0, 0.0])
    np.testing.assert_allclose(before[1, 3:7], [0.5, 0.5, 0.5, 1.0])


def test_a_missing_end_is_another_token():
    """One response was cut off where the other ended: they part at eos."""
    traj = trajectory([[1, 2, EOS], [1, 2]])
    _, after = values(traj.tokens, traj.mask, jnp.array([1.0, 0.0]), group_size=2)
    np.testing.assert_allclose(after[0, 3:6], [0.5, 0.5, 1.0])
    np.testing.assert_allclose(after[1, 3:5], [0.5, 0.5])


def test_differences_sum_to_the_outcome_less_the_mean():
    responses = [[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    outcomes = np.random.default_rng(1).normal(size=8).astype(np.float32)
    traj = trajectory(responses)
    before, after = values(traj.tokens, traj.mask, jnp.asarray(outcomes), group_size=8)
    total = np.sum(np.asarray(after - before), axis=1)
    np.testing.assert_allclose(total, outcomes - outcomes.mean(), rtol=1e-4, atol=1e-6)


def test_without_branching_it_is_grpo_exactly():
    traj = trajectory([[1, 0, 2, EOS]] * 7 + [[3, 3]] * 7)
    rewards = rewarded(traj, np.random.default_rng(2).normal(size=14))
    found = tempo(rewards, traj, group_size=7)
    grpo = jax.jit(partial(credit.group_relative, group_size=7))(rewards, traj)
    assert np.any(np.asarray(grpo) != 0)
    np.testing.assert_array_equal(found, grpo)


def test_after_the_last_branch_it_is_grpo_exactly():
    traj = trajectory([[i, 5, 6, EOS] for i in range(6)])
    rewards = rewarded(traj, np.random.default_rng(3).normal(size=6))
    found, grpo = (
        tempo(rewards, traj, group_size=6),
        credit.group_relative(rewards, traj, group_size=6),
    )
    np.testing.assert_allclose(found[:, 4:], grpo[:, 4:], rtol=1e-6)
    assert np.all(np.abs(found[:, 3]) > np.abs(grpo[:, 3]))


def test_equal_outcomes_give_zero():
    traj = trajectory(TREE)
    np.testing.assert_array_equal(tempo(rewarded(traj, [0.1] * 4), traj, group_size=4), 0.0)


def test_a_row_without_actions_counts_in_no_value():
    with_empty = trajectory([*TREE, []])
    found = tempo(rewarded(with_empty, [1.0, 1.0, 0.0, 0.0, 0.0]), with_empty, group_size=5)
    plain = trajectory(TREE)
    expected = tempo(rewarded(plain, [1.0, 1.0, 0.0, 0.0]), plain, group_size=4)
    np.testing.assert_allclose(found[:4], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found[4], 0.0)


def test_prompt_padding_and_gaps_do_not_matter():
    outcomes = [1.0, 1.0, 0.0, 0.0]
    short, long = trajectory(TREE, [2] * 4), trajectory(TREE, [7, 1, 4, 2], columns=9, seed=5)
    found = [tempo(rewarded(traj, outcomes), traj, group_size=4) for traj in (short, long)]
    for one, other in zip(by_row(found[0], short.mask), by_row(found[1], long.mask)):
        np.testing.assert_array_equal(one, other)
    # The same tokens with a hole behind the first: nothing acted moves among acted steps.
    tokens, mask = np.asarray(short.tokens), np.asarray(short.mask)
    hole = Trajectory(
        jnp.asarray(np.insert(tokens, 3, 8, axis=1)),
        jnp.asarray(np.insert(mask, 3, False, axis=1)),
        jnp.ones((4, tokens.shape[1] + 1), bool),
        jnp.zeros((4, tokens.shape[1] + 1)),
    )
    holed = tempo(rewarded(hole, outcomes), hole, group_size=4)
    np.testing.assert_array_equal(np.delete(np.asarray(holed), 3, axis=1), found[0])


def test_a_batch_of_broken_groups_is_refused():
    traj = trajectory(TREE)
    with pytest.raises(ValueError, match="group_size"):
        credit.prefix_tree_values(traj.tokens, traj.mask, jnp.zeros(4), group_size=3)
