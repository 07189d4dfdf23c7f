"""Rewards that the host computes while the next batch is sampled."""

import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import credit, rewards
from rewardjax.losses import Loss
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig
from rewardjax.statistics import Mean
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.run import Run
from rewardjax.trajectory import Trajectory

ROWS, TIME, VOCAB = 8, 3, 12
LOOP = LoopConfig(steps=9, steps_per_call=3, checkpoint_every=3)


class Sampled:
    """Counts the batches that the device has begun to sample."""

    def __init__(self):
        self.count, self.changed = 0, threading.Condition()

    def one_more(self):
        with self.changed:
            self.count += 1
            self.changed.notify_all()

    def wait_for(self, count):
        with self.changed:
            return self.changed.wait_for(lambda: self.count >= count, timeout=60)


def scores_of(params, tokens):
    return jax.nn.log_softmax(params["logits"])[jnp.arange(TIME), tokens]


def program(on_host, sampled=None, loop=LOOP, **changes):
    """A policy of independent tokens; the loss's ratio is to the parameters that sampled."""

    def rollout(params, batch, key):
        if sampled is not None:
            jax.debug.callback(sampled.one_more)
        logits = jax.nn.log_softmax(params["logits"])
        tokens = jax.random.categorical(key, logits, axis=-1, shape=(ROWS, TIME))
        mask = jnp.ones((ROWS, TIME), bool)
        return Trajectory(tokens, mask, mask, scores_of(params, tokens))

    def loss(params, traj, advantages):
        ratio = jnp.exp(scores_of(params, traj.tokens) - traj.logprobs)
        change = jnp.abs(ratio - 1)
        return Loss(
            {"policy": Mean.of(-ratio * advantages, traj.mask)}, {"change": Mean.of(change)}
        )

    config = PolicyGradientConfig(
        prompts=ROWS, optimizer=OptimizerConfig(learning_rate=0.1), loop=loop
    )
    return PolicyGradient(
        config,
        init=lambda key: {"logits": jax.random.normal(key, (TIME, VOCAB))},
        rollout=rollout,
        loss=loss,
        reward=lambda traj: rewards.outcome(traj.info["sum"], traj.mask),
        credit=lambda rewards, traj: credit.group_relative(rewards, traj, group_size=ROWS),
        prompts=lambda key, n: jnp.zeros(n),
        on_host=on_host,
        **changes,
    )


def sums(traj):
    return {"sum": np.sum(traj.actions, axis=1).astype(np.float32)}


def train(folder, on_host=sums, **changes):
    """The trained parameters, the log's bytes, and how far each update's ratios were from 1."""
    with Run(folder) as run:
        state = program(on_host, **changes).run(run)
        change = run.history("change")
    return jax.device_get(state.params), (folder / "metrics.jsonl").read_bytes(), change


@pytest.fixture(scope="module")
def overlapped(tmp_path_factory):
    return train(tmp_path_factory.mktemp("overlapped"), overlap=True)


def test_the_host_works_while_the_next_batch_is_sampled(tmp_path, overlapped):
    sampled, before = Sampled(), []

    def on_host(traj):
        # Of three updates in a call the last has none after it to wait for.
        call, i = divmod(len(before), 3)
        assert sampled.wait_for(3 * call + min(i + 2, 3)), "the next batch was never sampled"
        before.append(sampled.count)
        return sums(traj)

    found = train(tmp_path, on_host, sampled=sampled, overlap=True)
    assert before == [2, 3, 3, 5, 6, 6, 8, 9, 9]
    assert found[1] == overlapped[1]


def test_without_overlap_nothing_is_sampled_ahead(tmp_path):
    sampled, before = Sampled(), []

    def on_host(traj):
        jax.effects_barrier()
        before.append(sampled.count)
        return sums(traj)

    *_, change = train(tmp_path, on_host, sampled=sampled)
    assert before == list(range(1, 10))
    np.testing.assert_allclose(change, 0, atol=1e-6)


def test_a_batch_is_sampled_by_the_parameters_of_one_update_before(tmp_path, overlapped):
    plain = train(tmp_path / "plain")
    assert overlapped[1].splitlines()[0] == plain[1].splitlines()[0]
    # The first batch of each call is on policy; for the others the ratio makes up.
    on_policy = np.arange(9) % 3 == 0
    np.testing.assert_allclose(overlapped[2][on_policy], 0, atol=1e-6)
    assert (overlapped[2][~on_policy] > 0.01).all()

    seen = []

    def on_host(traj):
        seen.append(traj)
        return sums(traj)

    made = program(on_host, overlap=True)
    start = made.start(jax.random.key(0)).params
    with Run(tmp_path / "seen") as run:
        made.run(run)
    for traj in seen[:2]:
        np.testing.assert_allclose(traj.logprobs, scores_of(start, traj.actions), rtol=1e-6)
    assert np.abs(seen[2].logprobs - scores_of(start, seen[2].actions)).max() > 0.01


@pytest.mark.parametrize("calls", [4, 5])
def test_a_run_that_was_cut_off_goes_on_to_the_same(tmp_path, overlapped, calls):
    left = [calls]

    def dies(traj):
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionError
        return sums(traj)

    with pytest.raises(ConnectionError):
        train(tmp_path, dies, overlap=True)
    assert [path.name for path in (tmp_path / "checkpoints").glob("[0-9]*")] == ["3"]
    found = train(tmp_path, overlap=True)
    assert found[1] == overlapped[1]
    chex.assert_trees_all_equal(found[0], overlapped[0])


def test_overlap_needs_a_host_and_an_update_to_begin():
    with pytest.raises(ValueError, match="overlap: expected on_host and two or more updates"):
        program(None, overlap=True)
    single = LoopConfig(steps=9, steps_per_call=3, checkpoint_every=2)
    with pytest.raises(ValueError, match="overlap: expected on_host and two or more updates"):
        program(sums, loop=single, overlap=True)
