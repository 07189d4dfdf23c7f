"""Rollouts of several turns: one exact forward pass, no gap, rows that end on their own."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import losses
from rewardjax.envs.environment import Message, advance
from rewardjax.envs.host import HostEnvironment
from rewardjax.envs.lookup import (
    ANSWER,
    ANSWERED,
    BOS,
    END,
    ERROR,
    LOOKUP,
    PAD,
    QUESTION,
    SPECIAL,
    UNPARSED,
    UNPLAYED,
    USEFUL,
    USELESS,
    LookupWorld,
)
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.turns import TurnPolicy, demonstrate, dialogues

WORLD = LookupWorld(branching=2, synonyms=1, fewest_hops=1, most_hops=2, max_turns=4)
CONFIG = TransformerConfig(
    vocab=WORLD.vocab_size, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=24, context=40
)
MODEL = LanguageModel(CONFIG)
LANGUAGE = LanguagePolicy(MODEL, max_new=WORLD.max_action, stop=(END,), group_size=3)


class Counter:
    """Counts to `limit`: an observation of 0 to 2 tokens, the turn's number as reward."""

    def __init__(self, limit: int):
        self.limit = limit

    def reset(self, key):
        start = jax.random.randint(key, (), 0, 3)
        tokens = jnp.array([0, 3, 4]).at[0].set(start)
        return jnp.int32(0), Message(tokens, jnp.array([False, True, True]).at[0].set(start > 0))

    def step(self, state, tokens, mask):
        state = state + 1
        longer = tokens[0] % 3  # a gap in front where it is 1
        seen = Message(jnp.array([5, 6]), jnp.array([longer == 2, longer > 0]))
        return state, seen, state.astype(jnp.float32), (state >= self.limit) | (tokens[0] == 7)

    def columns(self, state):
        return {"count": state}


COUNTER = Counter(3)


@cache
def played(env, *, turns, temperature=1.0, scan=False):
    model = LanguageModel(dataclasses.replace(CONFIG, scan=scan))
    language = dataclasses.replace(LANGUAGE, model=model, temperature=temperature)
    policy = TurnPolicy(language, env, turns)
    params = jax.tree.map(lambda x: 2 * x, model.init(jax.random.key(0)))
    starts = policy.starts(jax.random.key(1), 5)
    return policy, params, jax.jit(policy.rollout)(params, starts, jax.random.key(2))


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        (WORLD, {}),
        (COUNTER, {"temperature": 0.7, "scan": True}),
    ],
)
def test_rollout_logprobs_equal_one_forward_pass(env, settings):
    policy, params, traj = played(env, turns=4, **settings)
    found = jax.jit(policy.score)(params, traj).logprobs
    np.testing.assert_allclose(jnp.where(traj.mask, found, 0), traj.logprobs, atol=1e-4)
    assert jnp.any(traj.logprobs < -0.1)


def test_rows_have_no_gap_and_end_on_their_own():
    _, _, traj = played(COUNTER, turns=4)
    valid, mask, turn = (np.asarray(x) for x in (traj.valid, traj.mask, traj.info["turn"]))
    edges = np.abs(np.diff(np.pad(valid, ((0, 0), (1, 1))).astype(int), axis=1)).sum(axis=1)
    assert (edges == 2).all()  # one run of valid tokens
    assert not mask[:, :3].any()
    assert (valid | ~mask).all()
    assert (turn[~valid] == -1).all()
    assert (turn[mask] >= 0).all()
    turns = np.asarray(traj.info["turns"])
    assert {1, 3} <= set(turns) <= {1, 2, 3}  # 7 ends early, in some rows
    np.testing.assert_array_equal(traj.info["count"], turns)
    expected = np.where(np.arange(4) < turns[:, None], np.arange(1, 5), 0)
    np.testing.assert_array_equal(traj.info["turn_rewards"], expected)
    for row in range(len(turns)):
        assert set(turn[row][mask[row]]) == set(range(turns[row]))
        assert (np.diff(turn[row][valid[row]]) >= 0).all()
    assert traj.info["done"].all()
    _, _, cut = played(Counter(9), turns=2)
    np.testing.assert_array_equal(cut.info["done"], cut.info["turns"] < 2)


def test_what_the_environment_says_is_in_the_transcript():
    _, _, traj = played(COUNTER, turns=4)
    tokens, mask, valid = (np.asarray(x) for x in (traj.tokens, traj.mask, traj.valid))
    turn = np.asarray(traj.info["turn"])
    for row in range(len(tokens)):
        for number in range(int(traj.info["turns"][row])):
            own = valid[row] & (turn[row] == number)
            action = tokens[row][own & mask[row]]
            seen = tokens[row][own & ~mask[row]].tolist()
            assert seen == {0: [], 1: [6], 2: [5, 6]}[action[0] % 3]
            assert END not in action[:-1]
            assert action[-1] == END or len(action) == WORLD.max_action


def test_observations_get_no_gradient():
    policy, params, traj = played(WORLD, turns=4)
    # An advantage beside the mask must not count, however large.
    advantages = jnp.where(traj.mask, 1.0, 1e6)

    scores = jax.jit(policy.score)(params, traj)

    def loss(logprobs):
        return losses.total(
            losses.reinforce_loss()(scores.replace(logprobs=logprobs), traj, advantages)
        )

    weights = jax.grad(loss)(scores.logprobs)
    assert not jnp.any(jnp.where(traj.mask, 0.0, weights))
    np.testing.assert_allclose(weights[traj.mask], -1 / jnp.sum(traj.mask), rtol=1e-6)


def test_group_members_share_their_question():
    _, _, traj = played(WORLD, turns=4)
    prompts = np.asarray(traj.tokens[:, : WORLD.prompt_length]).reshape(5, 3, -1)
    np.testing.assert_array_equal(prompts, np.repeat(prompts[:, :1], 3, axis=1))
    assert len(np.unique(prompts[:, 0], axis=0)) > 1
    gold = np.asarray(traj.info["gold"]).reshape(5, 3)
    np.testing.assert_array_equal(gold, np.repeat(gold[:, :1], 3, axis=1))


def test_local_attention_is_refused():
    model = LanguageModel(dataclasses.replace(CONFIG, spans=("local", "global")))
    policy = TurnPolicy(dataclasses.replace(LANGUAGE, model=model), WORLD, 2)
    with pytest.raises(ValueError, match=r"spans: expected 'global'.*found \('local'"):
        policy.rollout(None, policy.starts(jax.random.key(0), 1), jax.random.key(0))


# The lookup world


def action(*tokens):
    row = jnp.array(list(tokens) + [PAD] * (WORLD.max_action - len(tokens)))
    return row, row != PAD


def relation(number):
    return len(SPECIAL) + number


def entity(number):
    return WORLD.first_entity + number


def test_a_question_is_answered_along_its_chain():
    state, prompt = WORLD.reset(jax.random.key(3))
    hops = int(state.hops)
    chain, relations = state.chain.tolist(), state.relations.tolist()
    shown = [BOS, entity(chain[0]), *(relation(r) for r in relations[:hops]), QUESTION]
    assert prompt.tokens[prompt.valid].tolist() == shown
    for hop in range(hops):
        call = action(LOOKUP, entity(chain[hop]), relation(relations[hop]), END)
        state, seen, reward, done = WORLD.step(state, *call)
        assert seen.tokens[seen.valid].tolist() == [entity(chain[hop + 1])]
        assert (float(reward), bool(done)) == (0.0, False)
    right = action(ANSWER, entity(chain[hops]), END)
    wrong = action(ANSWER, entity((chain[hops] + 1) % WORLD.entities), END)
    _, seen, reward, done = WORLD.step(state, *wrong)
    assert (float(reward), bool(done), bool(seen.valid.any())) == (0.0, True, False)
    state, _, reward, done = WORLD.step(state, *right)
    assert (float(reward), bool(done)) == (1.0, True)
    kinds = [USEFUL] * hops + [ANSWERED]
    kinds += [UNPLAYED] * (WORLD.max_turns - len(kinds))
    columns = WORLD.columns(state)
    assert columns["kinds"].tolist() == kinds
    assert int(columns["gold"]) == entity(chain[hops])
    assert int(columns["known"]) == int(columns["hops"]) == hops


@pytest.mark.parametrize(
    "call",
    [
        action(LOOKUP, END),
        action(LOOKUP, relation(0), entity(0), END),
        action(LOOKUP, entity(0), relation(0), entity(0)),  # cut off before its end
        action(ANSWER, relation(0), END),
        action(ANSWER, entity(0), entity(0), END),
        action(QUESTION),
        action(),
    ],
)
def test_a_call_that_does_not_parse_is_an_error_and_the_episode_goes_on(call):
    state, _ = WORLD.reset(jax.random.key(3))
    before = state.known
    state, seen, reward, done = WORLD.step(state, *call)
    assert seen.tokens[seen.valid].tolist() == [ERROR]
    assert (float(reward), bool(done)) == (0.0, False)
    assert state.known == before
    assert int(state.kinds[0]) == UNPARSED


def test_a_lookup_beside_the_chain_is_useless():
    state, _ = WORLD.reset(jax.random.key(3))
    other = (int(state.relations[0]) + 1) % WORLD.relations
    call = action(LOOKUP, entity(int(state.chain[0])), relation(other), END)
    state, seen, *_ = WORLD.step(state, *call)
    assert int(state.kinds[0]) == USELESS
    assert entity(0) <= int(seen.tokens[0]) < WORLD.vocab_size


def test_a_fact_changes_the_branch_of_its_level():
    world = LookupWorld()
    subjects, relations = jnp.arange(27), jnp.arange(6)
    facts = jax.vmap(jax.vmap(partial(world.fact, jax.random.key(0)), (None, 0)), (0, None))
    objects = np.asarray(facts(subjects, relations))
    branches = [9, 3, 1]
    digits = objects[..., None] // branches % 3
    own = np.arange(27)[:, None] // branches % 3
    for number in range(6):
        others = np.arange(3) != number // 2
        np.testing.assert_array_equal(digits[:, number][:, others], own[:, others])
        assert set(digits[:, number, number // 2]) == {0, 1, 2}


def test_an_action_after_the_end_changes_nothing():
    state, _ = WORLD.reset(jax.random.key(3))
    gold = int(state.gold)
    right = action(ANSWER, entity(gold), END)
    state, _, reward, done = advance(WORLD, state, jnp.bool_(False), *right)
    assert (float(reward), bool(done)) == (1.0, True)
    for call in (right, action(LOOKUP, END)):
        after, seen, reward, still = advance(WORLD, state, done, *call)
        assert (float(reward), bool(still), bool(seen.valid.any())) == (0.0, True, False)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            assert bool(jnp.all(a == b))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"branching": 1}, r"branching: expected at least 2, found 1"),
        ({"most_hops": 5}, r"fewest_hops <= most_hops < max_turns, found 2, 5, 5"),
    ],
)
def test_a_world_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LookupWorld(**settings)


def test_a_perfect_teacher_is_always_right():
    starts = jax.random.split(jax.random.key(0), 32)
    write = partial(demonstrate, WORLD, max_turns=4)
    traj = jax.jit(partial(write, WORLD.teacher))(starts, jax.random.key(1))
    assert jnp.all(traj.info["correct"])
    np.testing.assert_array_equal(traj.info["turns"], traj.info["hops"] + 1)
    rows = dialogues(traj, WORLD.decode, count=1)
    hops = int(traj.info["hops"][0])
    assert rows[0]["prompt"].startswith("<bos> e")
    assert rows[0]["turns"][0]["action"].startswith("lookup e")
    assert rows[0]["turns"][0]["observation"].startswith("e")
    assert rows[0]["turns"][hops]["action"].startswith("answer e")
    assert rows[0]["turns"][hops] | {"action": ""} == {
        "action": "",
        "observation": "",
        "reward": 1.0,
    }
    hasty = partial(WORLD.teacher, accuracy=0.5, early=0.5, slips=0.3)
    traj = jax.jit(partial(write, hasty))(starts, jax.random.key(1))
    assert 0 < jnp.mean(traj.info["correct"]) < 1
    assert jnp.any(traj.info["kinds"] == UNPARSED)


# Environments in Python


class Echo:
    """Says back what it hears; ends when it hears 7."""

    def __init__(self, seed, reward=1.0):
        self.prompt, self.heard, self.reward = [seed % 4, 5], 0, reward

    def step(self, action):
        self.heard += len(action)
        return action[:1], self.reward * self.heard, action[0] == 7


def host(start=Echo, **sizes):
    sizes = {"max_prompt": 3, "max_observation": 1, "max_action": 4, "max_turns": 3} | sizes
    return HostEnvironment(start, **sizes)


def test_a_python_environment_plays_the_same_part():
    policy, params, traj = played(host(), turns=3)
    found = jax.jit(policy.score)(params, traj).logprobs
    np.testing.assert_allclose(jnp.where(traj.mask, found, 0), traj.logprobs, atol=1e-4)
    rows = dialogues(traj, lambda ids: " ".join(map(str, ids.tolist())), count=len(traj.tokens))
    for row, seed in zip(rows, np.asarray(traj.info["seed"]), strict=True):
        assert row["prompt"] == f"{seed % 4} 5"
        heard = 0
        for number, turn in enumerate(row["turns"]):
            words = turn["action"].split()
            heard += len(words)
            assert turn["observation"] == words[0]
            assert turn["reward"] == heard
            assert (words[0] == "7") <= (number == len(row["turns"]) - 1)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            host(partial(Echo, reward=float("nan"))),
            r"turn 0: reward: expected a finite number, found nan",
        ),
        (host(max_observation=0), r"turn 0: observation: expected at most 0 tokens, found 1"),
        (host(max_prompt=1), r"prompt: expected at most 1 tokens, found 2"),
    ],
)
def test_what_python_gets_wrong_is_named(env, message):
    def run():
        state, _ = env.reset(jax.random.key(0))
        jax.block_until_ready(env.step(state, jnp.array([3, 2, 0, 0]), jnp.arange(4) < 2))

    with pytest.raises(Exception, match=message):
        run()
