"""Likelihood rewards: the gradient's two terms against enumeration, and every kind of arm."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reasoning.likelihood_rewards import EXPERIMENT, REWARDS, ask, language_policy
from rewardjax import credit, losses, rewards
from rewardjax.recipes.reference_answers import (
    answered,
    likelihood_loss,
    reference_evaluation,
    reference_transcripts,
    thoughtless,
)
from rewardjax.sampling.generate import generate
from rewardjax.training.run import Run
from rewardjax.trajectory import Prompts, Trajectory, left_pad, respond

SMOKE = EXPERIMENT.scales["smoke"]
WORLD = SMOKE.world


# --- the exact gradient, by enumeration ---

# A thought is one of four tokens; an answer is two of three, each from its own row of logits.
THOUGHTS, LETTERS = 4, 3
REFERENCE = (2, 0)
PAIRS = jnp.array(list(itertools.product(range(THOUGHTS), repeat=2)))
keys = jax.random.split(jax.random.key(0))
PARAMS = {
    "thought": jax.random.normal(keys[0], (THOUGHTS,)),
    "answer": jax.random.normal(keys[1], (THOUGHTS, len(REFERENCE), LETTERS)),
}
EXACT = {
    "prob": lambda p: jnp.prod(p, axis=-1),
    "avgprob": lambda p: jnp.mean(p, axis=-1),
    "logprob": lambda p: jnp.sum(jnp.log(p), axis=-1),
    "avglogprob": lambda p: jnp.mean(jnp.log(p), axis=-1),
}


def tables(params):
    """pi(z) [thoughts], and the probability of each token of a* after it [thoughts, 2]."""
    answer = jax.nn.softmax(params["answer"])[:, jnp.arange(len(REFERENCE)), jnp.array(REFERENCE)]
    return jax.nn.softmax(params["thought"]), answer


def score(params, traj):
    """The policy's log-probabilities of rows `z a1 a2`."""
    thought, answer = tables(params)
    z = traj.tokens[:, 0]
    logprobs = jnp.log(jnp.concatenate([thought[z][:, None], answer[z]], axis=1))
    return losses.Scores(logprobs, jnp.zeros_like(logprobs))


def expected(name, params):
    """E[R] over all thoughts; JEPO's over all pairs."""
    thought, answer = tables(params)
    if name != "jepo":
        return jnp.sum(thought * EXACT[name](answer))
    prob = jnp.prod(answer, axis=1)
    values = jnp.log((prob[:, None] + prob[None, :]) / 2)
    return jnp.sum(thought[:, None] * thought[None, :] * values)


def written(z):
    """Rows of a thought and the reference behind it."""
    tokens = jnp.concatenate([z[:, None], jnp.tile(jnp.array(REFERENCE), (len(z), 1))], axis=1)
    on = jnp.zeros(tokens.shape, bool)
    traj = Trajectory(tokens, on.at[:, 0].set(True), ~on, jnp.zeros(tokens.shape))
    return traj.with_info(answer_mask=on.at[:, 1:].set(True))


def estimate(name, z, params, coefficient=1.0):
    """The gradient that an arm takes from one group of two thoughts."""
    settings, traj = REWARDS[name], written(z)
    columns = score(params, traj).logprobs, traj.info["answer_mask"]
    reward = rewards.outcome(settings["reward"](*columns), traj.mask)
    assign = settings.get("assign", credit.leave_one_out)
    advantages = assign(reward.steps, traj, group_size=2)
    whole = settings.get("group_reward")
    objective = partial(whole, group_size=2) if whole else settings["reward"]
    loss = likelihood_loss(objective, coefficient=coefficient)
    found = jax.grad(lambda p: losses.total(loss(score(p, traj), traj, advantages)))(params)
    return jax.tree.map(jnp.negative, found)


def expectation(name, **settings):
    """Of the estimate, over all pairs of thoughts."""
    thought, _ = tables(PARAMS)
    found = jax.vmap(lambda z: estimate(name, z, PARAMS, **settings))(PAIRS)
    weights = thought[PAIRS[:, 0]] * thought[PAIRS[:, 1]]
    return jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1), found)


@pytest.mark.parametrize("name", REWARDS)
def test_both_terms_together_are_the_gradient_of_the_expected_reward(name):
    found, exact = expectation(name), jax.grad(partial(expected, name))(PARAMS)
    for part in PARAMS:
        assert np.abs(exact[part]).max() > 0.01
        np.testing.assert_allclose(found[part], exact[part], atol=2e-6)


@pytest.mark.parametrize("name", REWARDS)
def test_without_the_second_term_only_the_thought_learns(name):
    found, exact = expectation(name, coefficient=0.0), jax.grad(partial(expected, name))(PARAMS)
    assert not np.any(found["answer"])
    np.testing.assert_allclose(found["thought"], exact["thought"], atol=2e-6)


def test_one_group_by_hand():
    """RLOO: each thought against the other, both answers trained with weight 1/2."""
    z, answer = jnp.array([3, 1]), tables(PARAMS)[1]
    gap = jnp.sum(jnp.log(answer[3])) - jnp.sum(jnp.log(answer[1]))
    found = estimate("logprob", z, PARAMS)
    # d log pi(z) = one-hot - pi: the mean of gap * (e3 - pi) and -gap * (e1 - pi).
    one_hot = np.eye(THOUGHTS)
    np.testing.assert_allclose(found["thought"], gap / 2 * (one_hot[3] - one_hot[1]), atol=1e-6)
    letters = np.eye(LETTERS)[list(REFERENCE)]
    for row in (1, 3):
        slope = (letters - np.asarray(jax.nn.softmax(PARAMS["answer"][row]))) / 2
        np.testing.assert_allclose(found["answer"][row], slope, atol=1e-6)
    assert not np.any(found["answer"][jnp.array([0, 2])])


# --- answers behind thoughts ---


def test_a_thought_that_was_cut_off_gets_the_delimiter_off_the_mask():
    mark = WORLD.delimiter
    prompts = Prompts(
        tokens=jnp.array([[1, 5], [1, 6]]),
        valid=jnp.ones((2, 2), bool),
        info={"reference": jnp.array([[11, 2], [12, 2]])},
    )
    thoughts = jnp.array([[7, mark, 0], [7, 8, 9]])
    traj = answered(respond(prompts, thoughts, thoughts > 0), mark)
    np.testing.assert_array_equal(traj.valid, [[1] * 6 + [0] * 2, [1] * 8])
    np.testing.assert_array_equal(traj.tokens[0, :6], [1, 5, 7, mark, 11, 2])
    np.testing.assert_array_equal(traj.tokens[1], [1, 6, 7, 8, 9, mark, 12, 2])
    np.testing.assert_array_equal(traj.mask, [[0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0]])
    found = traj.info["answer_mask"]
    np.testing.assert_array_equal(found, [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]])


def test_without_a_thought_the_answer_follows_the_delimiter():
    traj = answered(thoughtless(ask(SMOKE, False)(jax.random.key(1), 3)), WORLD.delimiter)
    assert not np.any(traj.mask)
    np.testing.assert_array_equal(traj.tokens[:, -3], [WORLD.delimiter] * 3)
    np.testing.assert_array_equal(traj.tokens[:, -2:], traj.info["reference"])
    np.testing.assert_array_equal(jnp.sum(traj.info["answer_mask"], axis=1), [2] * 3)


def test_the_references_are_the_answer_and_a_derivation():
    short, long = (ask(SMOKE, choice)(jax.random.key(2), 5) for choice in (False, True))
    answer = WORLD.first_number + short.info["answer"]
    np.testing.assert_array_equal(short.info["reference"][:, 0], answer)
    assert long.info["reference"].shape == (5, SMOKE.derivation)
    np.testing.assert_array_equal(long.info["reference"][:, -1], [WORLD.eos] * 5)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def test_evaluation_reads_greedy_decoding_off_one_pass(shared):
    """References that are the model's own greedy answers count, changed ones do not."""
    params, policy = shared[False][0]["reference"], language_policy(SMOKE)
    prompts = jax.tree.map(lambda x: x[:8], shared[False][0]["questions"])
    thoughts = dataclasses.replace(policy, temperature=0.0).rollout(
        params, prompts, jax.random.key(0)
    )
    # All but the two tokens of the answer, of which nothing is said before them.
    context = answered(thoughts, WORLD.delimiter)
    kept = context.valid & ~context.info["answer_mask"]
    asked = Prompts(*left_pad(context.tokens, kept), {})
    greedy = generate(
        policy.model, params, asked, jax.random.key(0), max_new=2, stop=(), temperature=0.0
    ).tokens[:, -2:]
    changed = greedy.at[:4, 1].set((greedy[:4, 1] + 1) % WORLD.vocab_size).at[4, 0].add(-1)
    prompts = prompts.replace(info=prompts.info | {"reference": changed})
    settings = {"sampled_prompts": 8, "thoughts": 2}
    evaluate = jax.jit(reference_evaluation(policy, WORLD.delimiter, **settings))
    found = evaluate(params, {"questions": prompts}, jax.random.key(3))
    assert float(found["greedy"]) == 3 / 8
    assert found["mcN"] > found["mc1"]
    np.testing.assert_allclose(found["perplexity"], np.exp(-found["mc1"]), rtol=1e-5)


def test_evaluation_without_thoughts_and_transcripts_agree(shared):
    params, policy = shared[False][0]["reference"], language_policy(SMOKE)
    prompts = jax.tree.map(lambda x: x[:4], shared[False][0]["questions"])
    settings = {"sampled_prompts": 4, "thoughts": 1, "thinks": False}
    evaluate = reference_evaluation(policy, WORLD.delimiter, **settings)
    found = evaluate(params, {"questions": prompts}, jax.random.key(0))
    rows = reference_transcripts(
        policy, params, thoughtless(prompts), WORLD.delimiter, WORLD.decode
    )
    logprobs = [row["logprob"] for row in rows]
    np.testing.assert_allclose(found["mc1"], np.mean(logprobs) / 2, rtol=1e-3)
    np.testing.assert_allclose(found["sampled"], np.mean(np.exp(logprobs)), rtol=1e-2)
    assert float(found["mcN"]) == float(found["mc1"])
    assert float(found["cot_length"]) == 0
    assert [row["reference"] for row in rows] == [f"{x} <eos>" for x in prompts.info["answer"]]


# --- the arms ---


@pytest.mark.parametrize("arm", ["base_rl", "logprob", "jepo", "sft", "l_prob"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    for claim in EXPERIMENT.claims:
        assert claim.metric in metrics
    samples = tmp_path / ("long" if arm.startswith("l_") else "short") / "samples.jsonl"
    assert samples.read_text().count("\n") == 4


def test_data_that_are_not_generated_are_refused():
    with pytest.raises(ValueError, match=r"expected 'arithmetic'.*found 'MATH'"):
        EXPERIMENT.prepare(EXPERIMENT.scales["paper"])
