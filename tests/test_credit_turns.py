"""Turn credit against NumPy loops; information gain against one forward pass a prefix, and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.credit import group_relative
from rewardjax.credit.turns import turn_relative, turn_returns
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.rewards.information_gain import answer_beliefs, information_gain, turn_gain
from rewardjax.trajectory import Trajectory, append, turn_ends

# Two tokens of prompt, then turns of one to three tokens with observations between them or not.
MASK = np.array(
    [
        [0, 0, 1, 1, 0, 1, 0, 1, 1],
        [0, 0, 1, 1, 1, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
    bool,
)
TURN = np.array(
    [
        [-1, -1, 0, 0, 0, 1, 1, 2, 2],
        [-1, -1, 0, 0, 1, 1, 1, -1, -1],
        [-1, -1, 0, 0, 0, 0, 1, 1, -1],
        [-1, -1, -1, -1, -1, -1, -1, -1, -1],
    ]
)
VALID = MASK | (TURN >= 0) | (np.arange(9) < 2)
ENDS = [[3, 5, 8], [3, 6], [2, 6], []]  # the last policy token of each turn
TRAJ = Trajectory(
    jnp.asarray(np.random.default_rng(0).integers(0, 7, MASK.shape)),
    jnp.asarray(MASK),
    jnp.asarray(VALID),
    jnp.zeros(MASK.shape),
    info={"turn": jnp.asarray(TURN)},
)
STEPS = np.zeros(MASK.shape, np.float32)
for row, ends in enumerate(ENDS):
    STEPS[row, ends] = np.arange(1, len(ends) + 1) ** 2 * [1.0, -0.5, 3.0, 0.0][row]


def returns_by_loop(steps, discount):
    found = np.zeros(steps.shape)
    for row, ends in enumerate(ENDS):
        rewards = [steps[row, end] for end in ends]
        for t in np.flatnonzero(MASK[row]):
            turn = TURN[row, t]
            found[row, t] = sum(
                discount ** (k - turn) * r for k, r in enumerate(rewards) if k >= turn
            )
    return found


def test_turn_ends():
    found = np.asarray(turn_ends(TRAJ))
    assert [np.flatnonzero(row).tolist() for row in found] == ENDS


@pytest.mark.parametrize("discount", [1.0, 0.5, 0.0])
def test_turn_returns_are_those_of_a_loop(discount):
    found = turn_returns(jnp.asarray(STEPS), TRAJ, discount=discount)
    np.testing.assert_allclose(found, returns_by_loop(STEPS, discount), rtol=1e-6)


@pytest.mark.parametrize("separate", [True, False])
def test_turn_relative_is_that_of_a_loop(separate):
    scaled = np.zeros(STEPS.shape)
    for group in ((0, 1), (2, 3)):
        places = {"outcome": [], "turn": []}
        for row in group:
            places["outcome"] += [(row, end) for end in ENDS[row][-1:]]
            places["turn"] += [(row, end) for end in ENDS[row][:-1]]
        kinds = places.values() if separate else [places["outcome"] + places["turn"]]
        for kind in kinds:
            values = np.array([STEPS[place] for place in kind])
            for place, value in zip(kind, values, strict=True):
                if len(values) > 1:
                    scaled[place] = (value - values.mean()) / (values.std(ddof=1) + 1e-6)
    rewards = jnp.asarray(STEPS)
    found = turn_relative(rewards, TRAJ, group_size=2, discount=0.9, separate=separate)
    np.testing.assert_allclose(found, returns_by_loop(scaled, 0.9), atol=1e-5)


def test_turn_relative_by_hand():
    # Outcomes 9 and -2: one deviation is 11 / sqrt 2. Turns 1, 4, -0.5: mean 1.5, deviation 2.291.
    found = np.asarray(turn_relative(jnp.asarray(STEPS), TRAJ, group_size=2))
    outcome = 5.5 / (11 / 2**0.5)
    turns = (np.array([1, 4, -0.5]) - 1.5) / 2.2912878
    np.testing.assert_allclose(found[0, 2], turns[0] + turns[1] + outcome, rtol=1e-5)
    np.testing.assert_allclose(found[0, 5], turns[1] + outcome, rtol=1e-5)
    np.testing.assert_allclose(found[0, 7:], outcome, rtol=1e-5)
    np.testing.assert_allclose(found[1, 2], turns[2] - outcome, rtol=1e-5)
    assert (found[~MASK] == 0).all()
    # alone of its kind in its group: nothing to compare with
    np.testing.assert_array_equal(found[2:], 0.0)


def test_with_outcomes_alone_it_is_group_relative():
    steps = np.zeros((4, 9), np.float32)
    steps[[0, 1, 2], [8, 6, 6]] = [1.0, 0.0, 1.0]
    mine = turn_relative(jnp.asarray(steps), TRAJ, group_size=4)
    np.testing.assert_allclose(
        mine, group_relative(jnp.asarray(steps), TRAJ, group_size=4), atol=1e-6
    )
    assert jnp.max(jnp.abs(mine)) > 0.5


def test_equal_rewards_have_no_advantage():
    steps = jnp.where(turn_ends(TRAJ), 0.1, 0.0)
    assert not jnp.any(turn_relative(steps, TRAJ, group_size=4))


# Information gain

CONFIG = TransformerConfig(
    vocab=7, layers=2, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=24, context=16
)
MODEL = LanguageModel(CONFIG)
PARAMS = jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(0)))
ANSWER = jnp.array([[5, 3, 2], [5, 1, 0], [5, 4, 6], [5, 2, 0]])
ANSWER_VALID = jnp.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0]], bool)
SCORED = ANSWER_VALID & (jnp.arange(3) > 0)


@pytest.mark.parametrize("padded", [False, True])
def test_beliefs_equal_a_forward_pass_for_each_prefix(padded):
    traj = TRAJ
    if padded:  # a prompt that does not fill its columns
        traj = traj.replace(valid=traj.valid & (jnp.arange(9) > 0))
    found = jax.jit(answer_beliefs, static_argnums=0, static_argnames="turns")(
        MODEL, PARAMS, traj, ANSWER, ANSWER_VALID, SCORED, turns=3
    )
    score = jax.jit(MODEL.score)
    for turn in range(-1, 3):
        seen = traj.valid & (traj.info["turn"] <= turn)
        full = append(traj.replace(valid=seen, mask=traj.mask & seen), ANSWER, ANSWER_VALID)
        logprobs, _ = score(PARAMS, full.tokens, full.valid.astype(jnp.int32))
        logprobs, held = np.asarray(logprobs), np.asarray(full.info["answer_mask"])
        expected = [logprobs[row][held[row]][1:].mean() for row in range(4)]
        np.testing.assert_allclose(found[:, turn + 1], expected, atol=1e-5)
    assert float(jnp.std(found[0])) > 1e-3
    np.testing.assert_array_equal(found[1, 2], found[1, 3])  # no third turn: the belief stays


def test_information_gain_on_a_toy_likelihood():
    probability = jnp.array([[0.25, 0.5, 0.5, 1.0]])
    np.testing.assert_allclose(information_gain(probability), [[0.25, 0.0, 0.5]])
    two = np.log(2)
    gain = information_gain(jnp.log(probability))
    np.testing.assert_allclose(gain, [[two, 0.0, two]], rtol=1e-6)
    # a belief of e^-100 counts as e^-2
    low = jnp.array([[-100.0, -1.5, -100.0]])
    np.testing.assert_allclose(information_gain(low, floor=-2.0), [[0.5, -0.5]])


def test_gains_stand_at_the_end_of_their_turns_but_the_last():
    gain = jnp.array([[1.0, 2.0, 4.0]] * 4)
    reward = turn_gain(gain, TRAJ)
    expected = np.zeros(MASK.shape)
    expected[0, [3, 5]] = [1, 2]
    expected[1, 3] = expected[2, 2] = 1
    np.testing.assert_array_equal(reward.steps, expected)
    np.testing.assert_array_equal(reward.applicable, [True, True, True, False])
    np.testing.assert_array_equal(reward.parts["information_gain"], [3, 1, 1, 0])


def test_local_attention_is_refused():
    model = LanguageModel(dataclasses.replace(CONFIG, spans=("local", "global")))
    with pytest.raises(ValueError, match="spans: expected 'global'"):
        answer_beliefs(model, PARAMS, TRAJ, ANSWER, ANSWER_VALID, SCORED, turns=3)
