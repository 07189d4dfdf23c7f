"""Games, self-play, exploitability and role baselines, against values known or worked out apart."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.credit.role_baseline import baseline_advantages, ema_update
from rewardjax.envs.games import Bidding, KuhnPoker, Table, TicTacToe
from rewardjax.evaluation.exploitability import (
    KUHN_EQUILIBRIUM,
    kuhn_exploitability,
    kuhn_value,
    matrix_exploitability,
)
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.role_baseline import ema_baseline
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.self_play import (
    OFFENDER,
    OTHER,
    SelfPlay,
    action_probabilities,
    demonstrate,
    uniform_opponent,
)
from rewardjax.trajectory import Prompts, Trajectory

KUHN, TIC_TAC_TOE, BIDDING = KuhnPoker(), TicTacToe(), Bidding()
CHECK, BET, CALL, FOLD = range(4)
TABLE = Table((KUHN, BIDDING), thoughts=2)
MODEL = LanguageModel(
    TransformerConfig(vocab=TABLE.vocab_size, layers=1, width=16, heads=2, kv_heads=2, head_dim=8)
)
POLICY = LanguagePolicy(MODEL, max_new=2, stop=TABLE.stop, prompt_columns=TABLE.columns)
PLAY = SelfPlay(POLICY, TABLE)


# Exploitability


def kuhn_by_enumeration(policy, *, role):
    """What a best response in `role` wins: all 64 of its pure strategies against the policy."""
    best = -np.inf
    for plan in itertools.product([0, 1], repeat=6):
        mine = np.array(plan).reshape(2, 3)  # by own information set and card
        won = 0.0
        for cards in itertools.permutations(range(3), 2):
            sign = 1 if cards[0] > cards[1] else -1
            for moves in itertools.product([0, 1], repeat=3):  # role 0, role 1, role 0 again
                first, second, third = moves
                if third and (first or not second):
                    continue  # there is no third move
                chance = 1 / 6
                history = [(0, 0, first), (1, 1 + first, second)]
                history += [(0, 3, third)] if second and not first else []
                for who, row, move in history:
                    own_row = {0: {0: 0, 3: 1}, 1: {1: 0, 2: 1}}[who][row]
                    p = mine[own_row, cards[who]] if who == role else policy[row, cards[who]]
                    chance *= p if move else 1 - p
                if not first and not second:
                    gain = sign
                elif first:
                    gain = 2 * sign if second else 1
                else:
                    gain = 2 * sign if third else -1
                won += chance * gain
        best = max(best, won if role == 0 else -won)
    return best


def test_kuhn_exploitability_is_that_of_an_enumeration():
    rng = np.random.default_rng(0)
    for policy in [
        np.full((4, 3), 0.5),
        rng.uniform(size=(4, 3)),
        rng.integers(0, 2, (4, 3)) * 1.0,
    ]:
        expected = sum(kuhn_by_enumeration(policy, role=role) for role in (0, 1)) / 2
        found = kuhn_exploitability(jnp.asarray(policy, jnp.float32))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_kuhn_exploitability_of_the_uniform_policy():
    # Against uniform play, role 0 wins 1/2 at best (each of 6 deals 1/6) and role 1 5/12.
    found = kuhn_exploitability(jnp.full((4, 3), 0.5))
    np.testing.assert_allclose(found, (1 / 2 + 5 / 12) / 2, atol=1e-6)


@pytest.mark.parametrize("bluff", [0.0, 0.2, 1 / 3])
def test_kuhn_equilibria_cannot_be_exploited(bluff):
    policy = jnp.array(
        [[bluff, 0, 3 * bluff], [1 / 3, 0, 1], [0, 1 / 3, 1], [0, bluff + 1 / 3, 1]], jnp.float32
    )
    np.testing.assert_allclose(kuhn_exploitability(policy), 0.0, atol=1e-6)
    np.testing.assert_allclose(kuhn_value(policy, policy), -1 / 18, atol=1e-6)
    if bluff == 1 / 3:
        np.testing.assert_allclose(policy, KUHN_EQUILIBRIUM, rtol=1e-6)


def test_matrix_exploitability():
    pennies = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    half = jnp.array([0.5, 0.5])
    assert float(matrix_exploitability(pennies, half, half)) == 0
    # the column player wins 0.6 against (0.8, 0.2); nothing is won against a half
    assert float(matrix_exploitability(pennies, jnp.array([0.8, 0.2]), half)) == pytest.approx(0.3)


def test_the_bidding_game_by_hand():
    np.testing.assert_allclose(
        BIDDING.payoffs, [[0.2, 0.8, 0.8], [1, 0, 1], [1.2, 1.2, -0.2]], atol=1e-6
    )


# Games


@pytest.mark.parametrize(
    ("moves", "pot"),
    [
        ((CHECK, CHECK), 1),
        ((BET, CALL), 2),
        ((CHECK, BET, CALL), 2),
        ((BET, FOLD), None),
        ((CHECK, BET, FOLD), None),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_kuhn_poker_by_its_rules(moves, pot, seed):
    state = KUHN.init(jax.random.key(seed))
    cards = []
    for turn, move in enumerate(moves):
        assert int(KUHN.role(state)) == turn % 2
        assert not KUHN.done(state)
        facing = turn > 0 and moves[turn - 1] == BET
        legal = [CALL, FOLD] if facing else [CHECK, BET]
        assert np.flatnonzero(KUHN.legal(state)).tolist() == legal
        seen = KUHN.observe(state)
        words = [KUHN.words[i] for i in np.asarray(seen.tokens)[np.asarray(seen.valid)]]
        assert words[1:] == [KUHN.words[i] for i in moves[:turn]]
        cards.append("JQK".index(words[0]))
        state = KUHN.step(state, jnp.int32(move))
    assert KUHN.done(state)
    # Whoever folds loses the ante, whatever the cards are.
    ahead = cards[0] > cards[1] if pot else len(moves) % 2 == 0
    won = (pot or 1) * (1 if ahead else -1)
    np.testing.assert_array_equal(KUHN.returns(state), [won, -won])


def test_information_sets_are_what_players_see():
    views = KUHN.information_sets()
    assert views.tokens.shape == (4, 3, 3)
    for history, row, valid in zip(KUHN.histories, views.tokens, views.valid, strict=True):
        for card in range(3):
            assert row[card][valid[card]].tolist() == [4 + card, *history]
    moves = jnp.zeros((4, 3, 4)).at[..., :].set(jnp.array([0.1, 0.3, 0.2, 0.4]))
    chips, legal = KUHN.chip_probability(moves)
    np.testing.assert_allclose(chips[:, 0], [0.75, 0.75, 1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(legal[:, 0], [0.4, 0.4, 0.6, 0.6], rtol=1e-6)


def test_tic_tac_toe_is_won_by_three_in_a_row():
    state = TIC_TAC_TOE.init(jax.random.key(1))
    for move in [0, 3, 1, 4, 2]:
        assert not TIC_TAC_TOE.done(state)
        assert TIC_TAC_TOE.legal(state)[move]
        state = TIC_TAC_TOE.step(state, jnp.int32(move))
        assert TIC_TAC_TOE.done(state) or not TIC_TAC_TOE.legal(state)[move]
    assert TIC_TAC_TOE.done(state)
    np.testing.assert_array_equal(TIC_TAC_TOE.returns(state), [1, -1])
    seen = TIC_TAC_TOE.observe(state)
    assert [TIC_TAC_TOE.words[i] for i in seen.tokens[seen.valid]] == ["a1", "a2", "b1", "b2", "c1"]


def test_a_table_has_one_vocabulary():
    assert TABLE.vocabulary[5] == "kuhn_poker"
    assert [TABLE.vocabulary[i] for i in TABLE.stop] == [*KUHN.words[:4], *BIDDING.words]
    assert TABLE.columns == 5
    view = TABLE.prompt(0, jnp.int32(1), KUHN.observe(KUHN.init(jax.random.key(0))))
    assert TABLE.decode(view.tokens).split()[:2] == ["kuhn_poker", "second"]
    low = TABLE.vocabulary.index("low")
    np.testing.assert_array_equal(TABLE.action(1, jnp.array([low, low + 2, 3, 6])), [0, 2, -1, -1])
    np.testing.assert_array_equal(TABLE.action(0, jnp.array([6, 9, 10, low])), [0, 3, -1, -1])


# Self-play


@pytest.fixture(scope="module")
def played():
    params = MODEL.init(jax.random.key(0))
    starts = PLAY.starts(jax.random.key(1), 24)
    return params, jax.jit(PLAY.rollout)(params, starts, jax.random.key(2))


def test_every_game_is_played_by_the_rules(played):
    _, traj = played
    info = {name: np.asarray(x) for name, x in traj.info.items()}
    tokens, mask = np.asarray(traj.tokens), np.asarray(traj.mask)
    assert len(tokens) == 24 * (3 + 2)
    acted = mask.any(axis=1)
    seen_invalid, seen_end = 0, 0
    for number, start in [(0, 0), (1, 72)]:
        game = TABLE.games[number]
        for first in range(start, start + 24 * game.max_turns, game.max_turns):
            rows = [i for i in range(first, first + game.max_turns) if acted[i]]
            assert rows == list(range(first, first + len(rows)))  # no move after the end
            assert info["role"][rows].tolist() == [i % 2 for i in range(len(rows))]
            assert info["opening"][rows].tolist() == [i < 2 for i in range(len(rows))]
            moves = [TABLE.decode(tokens[i][mask[i]]).split()[-1] for i in rows]
            bad = info["invalid"][rows]
            assert not bad[:-1].any()
            final = dict(zip(info["role"][rows].tolist(), info["outcome"][rows], strict=True))
            if bad[-1]:
                assert final.pop(int(info["role"][rows[-1]])) == OFFENDER
                assert set(final.values()) <= {np.float32(OTHER)}
                seen_invalid += 1
            else:
                assert sum(final.values()) == pytest.approx(0)
                assert moves[-1] in game.words[: game.actions]
                seen_end += 1
                if number == 1:
                    bids = [game.words.index(move) for move in moves]
                    assert final[0] == pytest.approx(float(BIDDING.payoffs[tuple(bids)]))
    assert seen_invalid
    assert seen_end


def test_self_play_logprobs_equal_one_forward_pass(played):
    params, traj = played
    found = PLAY.score(params, traj).logprobs
    np.testing.assert_allclose(jnp.where(traj.mask, found, 0), traj.logprobs, atol=1e-4)


def test_an_opponent_sits_in_every_other_seat(played):
    params, _ = played
    play = dataclasses.replace(PLAY, opponent=uniform_opponent)
    starts = play.starts(jax.random.key(1), 8)
    traj = jax.jit(play.rollout)(params, starts, jax.random.key(2))
    acted = np.asarray(traj.mask).any(axis=1)
    seat = np.concatenate([np.repeat(np.arange(8) % 2, turns) for turns in (3, 2)])
    assert (np.asarray(traj.info["role"])[acted] == seat[acted]).all()
    assert not np.asarray(traj.logprobs)[~acted].any()
    assert set(np.asarray(traj.info["role"])[acted]) == {0, 1}


def test_action_probabilities_are_those_of_sampling(played):
    params, _ = played
    views = KUHN.information_sets()
    seen = jax.tree.map(lambda x: x[1, :1], views)
    found = action_probabilities(PLAY, params, 0, jnp.array([1]), seen)
    view = TABLE.prompt(0, jnp.int32(1), jax.tree.map(lambda x: x[0], seen))
    prompts = jax.tree.map(lambda x: jnp.repeat(x[None], 4000, axis=0), view)
    traj = jax.jit(POLICY.rollout)(params, Prompts(*prompts), jax.random.key(3))
    last = jnp.max(jnp.where(traj.mask, jnp.arange(traj.mask.shape[1]), 0), axis=1)
    action = TABLE.action(0, jnp.take_along_axis(traj.tokens, last[:, None], axis=1)[:, 0])
    shares = [float(jnp.mean(action == move)) for move in range(4)]
    np.testing.assert_allclose(found[0], shares, atol=0.03)
    assert 0 < float(jnp.sum(found)) < 1


def test_a_script_plays_by_the_rules_and_thinks():
    starts = PLAY.starts(jax.random.key(1), 32)
    traj = demonstrate(TABLE, uniform_opponent, starts, jax.random.key(0), max_new=3)
    acted = jnp.any(traj.mask, axis=1)
    assert not jnp.any(traj.info["invalid"])
    assert set(np.asarray(traj.lengths)[acted]) == {1, 2, 3}
    assert int(jnp.sum(acted & (traj.info["game"] == 1))) == 2 * 32
    assert int(jnp.sum(acted & (traj.info["game"] == 0))) > 2 * 32
    assert float(
        jnp.sum(jnp.where(traj.info["opening"], traj.info["outcome"], 0))
    ) == pytest.approx(0)


# The baseline


def test_the_average_moves_episode_by_episode():
    entry, outcomes = jnp.array([0, 1, 0, 0]), jnp.array([1.0, -1.0, 2.0, 100.0])
    counted = jnp.array([True, True, True, False])
    found = ema_update(jnp.array([0.0, 0.5]), entry, outcomes, counted, decay=0.75)
    # 0 -> 0.25 -> 0.1875 + 0.5; 0.5 -> 0.375 - 0.25
    np.testing.assert_allclose(found, [0.6875, 0.125])


def test_a_baseline_is_read_before_it_is_updated():
    mask = jnp.array([[0, 1, 1], [0, 1, 0], [0, 0, 0]], bool)
    traj = Trajectory(mask * 1, mask, mask, jnp.zeros((3, 3)), info={"role": jnp.array([0, 1, 1])})
    learner = ema_baseline(
        lambda traj: traj.info["role"],
        2,
        counted=lambda traj: jnp.any(traj.mask, axis=1),
        decay=0.5,
    )
    state = learner.init(jax.random.key(0))
    rewards = jnp.where(mask, 1.0, 0.0)  # outcomes 2, 1, and none
    for expected, after in [([0, 0], [1, 0.5]), ([1, 0.5], [1.5, 0.75])]:
        state, seen, metrics = learner.observe(state, traj, None)
        np.testing.assert_allclose(seen.info["baseline"], [*expected, expected[1]])
        assert float(metrics["0"].value) == expected[0]
        advantages = baseline_advantages(rewards, seen)
        wanted = np.where(mask, [[2.0 - expected[0]], [1.0 - expected[1]], [0.0]], 0.0)
        np.testing.assert_allclose(advantages, wanted)
        state, _ = learner.update(state, seen, rewards, None)
        np.testing.assert_allclose(state, after)
