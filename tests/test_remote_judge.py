"""A served judge's scores as rewards, and training that goes on after the service died."""

import dataclasses
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_service import FakeService, status

from rewardjax import credit
from rewardjax.losses import Loss
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig
from rewardjax.recipes.remote_judge import RemoteJudge, read_score
from rewardjax.services import Client, ServiceConfig, ServiceUnavailable
from rewardjax.statistics import Mean
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.run import Run
from rewardjax.trajectory import Trajectory

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

VOCAB, TIME = 12, 3


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def decode(traj):
    return [
        " ".join(str(int(token)) for token, on in zip(tokens, mask) if on)
        for tokens, mask in zip(traj.actions, traj.mask)
    ]


def ask(text):
    return [{"role": "user", "content": f"Rate: {text}"}]


def parse(text):
    return read_score(text, low=0.0, high=10.0)


def judge_of(service, folder, **changes):
    quick = {"patience": 0.2, "backoff": 0.01, "longest_backoff": 0.05, "concurrency": 2}
    config = ServiceConfig(url=service.url, **(quick | changes))
    return RemoteJudge(Client(config, folder / "answers.sqlite"), decode, ask, parse, unparsed=-1.0)


def responses(tokens, mask):
    tokens, mask = np.array(tokens), np.array(mask, bool)
    return Trajectory(tokens, mask, mask, np.zeros(tokens.shape, np.float32))


def test_scores_and_what_could_not_be_read(tmp_path):
    said = {
        "Rate: 1 2": "Fine.\nScore: 7.5",
        "Rate: 3": "I cannot say.",
        "Rate: 4 5": "**Score: 11**",
        "Rate: 6 7": "Score: 3\nOn reflection:\nScore: 4",
    }
    traj = responses(
        [[1, 2], [3, 0], [4, 5], [0, 0], [6, 7]], [[1, 1], [1, 0], [1, 1], [0, 0], [1, 1]]
    )
    with FakeService(lambda messages: said[messages[0]["content"]]) as service:
        judge = judge_of(service, tmp_path)
        with judge.client:
            columns = judge.columns(traj)
        assert service.served == 4
    np.testing.assert_array_equal(columns["judge"], np.float32([7.5, -1, -1, -1, 4]))
    np.testing.assert_array_equal(columns["judge_parsed"], np.float32([1, 0, 0, 0, 1]))
    reward = judge.reward(jax.tree.map(jnp.asarray, traj.with_info(**columns)))
    np.testing.assert_array_equal(reward.steps, [[0, 7.5], [-1, 0], [0, -1], [0, 0], [0, 4]])
    np.testing.assert_array_equal(reward.applicable, [True, True, True, False, True])
    np.testing.assert_array_equal(reward.parts["judge"], [7.5, -1, -1, 0, 4])
    np.testing.assert_array_equal(reward.parts["judge_parsed"], [1, 0, 0, 0, 1])


def test_a_refused_request_has_the_score_of_an_unread_answer(tmp_path):
    with FakeService(lambda messages: "Score: 5", script=[status(400, "too long")]) as service:
        judge = judge_of(service, tmp_path, concurrency=1)
        with judge.client:
            columns = judge.columns(responses([[1], [2]], [[1], [1]]))
    np.testing.assert_array_equal(columns["judge"], np.float32([-1, 5]))
    np.testing.assert_array_equal(columns["judge_parsed"], np.float32([0, 1]))


def test_any_function_parses(tmp_path):
    said = {"Rate: 1": "0.25", "Rate: 2": "good", "Rate: 3": "nan"}
    with FakeService(lambda messages: said[messages[0]["content"]]) as service:
        judge = dataclasses.replace(
            judge_of(service, tmp_path), parse=float, name="grade", unparsed=0.0
        )
        with judge.client:
            columns = judge.columns(responses([[1], [2], [3]], [[1], [1], [1]]))
    np.testing.assert_array_equal(columns["grade"], np.float32([0.25, 0, 0]))
    np.testing.assert_array_equal(columns["grade_parsed"], np.float32([1, 0, 0]))


def test_the_next_rollout_need_not_wait(tmp_path):
    release = threading.Event()

    def reply(messages):
        assert release.wait(5)
        return "Score: 1"

    with FakeService(reply) as service:
        judge = judge_of(service, tmp_path)
        with judge.client:
            wait = judge.submit(responses([[1], [2]], [[1], [1]]))
            service.wait_for(2)  # both are asked while nobody waits for them
            release.set()
            np.testing.assert_array_equal(wait()["judge"], np.float32([1, 1]))


def test_rows_that_do_not_match_the_batch(tmp_path):
    with FakeService() as service:
        judge = dataclasses.replace(judge_of(service, tmp_path), decode=lambda traj: ["one"])
        with judge.client, pytest.raises(ValueError, match="decode: expected 2 rows, found 1"):
            judge.columns(responses([[1], [2]], [[1], [1]]))
        assert service.bodies == []


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 7", 7.0),
        ("reasons\n- **Score:** 8.5.\n", 8.5),
        ("score = 0", 0.0),
        ("Score: 2\nScore: 3", 3.0),
        ("Score: -1", None),
        ("Score: 7/10", None),
        ("Score: 11", None),
        ("Score:\n7", None),
        ("The score is 7", None),
        ("", None),
    ],
)
def test_read_score(text, score):
    assert read_score(text, low=0.0, high=10.0) == score


def program(judge, asked):
    """A policy of independent tokens, trained on what the judge says of them."""

    def rollout(params, batch, key):
        logits = jax.nn.log_softmax(params["logits"])
        tokens = jax.random.categorical(key, logits, axis=-1, shape=(8, TIME))
        mask = jnp.ones((8, TIME), bool)
        return Trajectory(tokens, mask, mask, logits[jnp.arange(TIME), tokens])

    def loss(params, traj, advantages):
        logits = jax.nn.log_softmax(params["logits"])
        scores = logits[jnp.arange(TIME), traj.tokens]
        return Loss({"policy": Mean.of(-scores * advantages, traj.mask)}, {})

    def columns(traj):
        found = judge.columns(traj)
        asked.append(judge.client.counters.answered)
        return found

    config = PolicyGradientConfig(
        prompts=8,
        optimizer=OptimizerConfig(learning_rate=0.1),
        loop=LoopConfig(steps=4, steps_per_call=1, checkpoint_every=2),
    )
    return PolicyGradient(
        config,
        init=lambda key: {"logits": jax.random.normal(key, (TIME, VOCAB))},
        rollout=rollout,
        loss=loss,
        reward=judge.reward,
        credit=lambda rewards, traj: credit.group_relative(rewards, traj, group_size=8),
        prompts=lambda key, n: jnp.zeros(n),
        on_host=columns,
    )


def train(judge, folder):
    """The trained parameters, the log, and the answers paid for by the end of each step."""
    asked = []
    with judge.client:
        judge.client.check()
        with Run(folder) as run:
            state = program(judge, asked).run(run)
    return jax.device_get(state.params), (folder / "metrics.jsonl").read_bytes(), asked


def rate(messages):
    """Higher for larger tokens; some answers hold no score."""
    total = sum(int(word) for word in messages[0]["content"].split() if word.isdigit())
    return "no idea" if total % 5 == 0 else f"Score: {total / 4}"


def test_a_run_goes_on_where_its_judge_died(tmp_path):
    with FakeService(rate) as service:
        expected = train(judge_of(service, tmp_path / "whole"), tmp_path / "whole")
        total, asked = service.served, expected[2]
    assert asked[1] + 2 < asked[2], "the third step must have something left to ask"
    assert b'"reward/judge_parsed"' in expected[1]

    folder = tmp_path / "cut"
    with FakeService(rate) as service:
        service.die_after = asked[1] + 2
        judge = judge_of(service, folder)
        with pytest.raises(ServiceUnavailable, match="of 8 requests are answered and cached"):
            train(judge, folder)
        assert sorted(path.name for path in (folder / "checkpoints").glob("[0-9]*")) == ["2"]
        # Typed again too early: it says so before anything is trained.
        with pytest.raises(ServiceUnavailable, match="0 of 1"):
            train(judge_of(service, folder), folder)
        service.start()
        params, log, _ = train(judge_of(service, folder), folder)
        assert service.served == total + 1  # no answer was paid for twice but that of the check

    chex.assert_trees_all_equal(params, expected[0])
    assert log == expected[1]
