"""Seeds that run side by side as one vmapped program: the numbers of seeds in turn."""

import dataclasses
import json
import os
import signal
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import runner
from rewardjax.catalogue import Entry
from rewardjax.data.sources import ArraySource
from rewardjax.experiment import Arm, Experiment, Paper
from rewardjax.losses import Loss
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.statistics import Mean
from rewardjax.training.cohort import side_by_side
from rewardjax.training.loop import LoopConfig, NonFinite
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.run import Silent
from rewardjax.training.signals import terminable

DRAWS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
DATA = {"x": DRAWS, "y": DRAWS @ np.float32([1, -2, 3])}


@dataclasses.dataclass(frozen=True)
class Config:
    fit: SupervisedConfig = SupervisedConfig(
        8,
        optimizer=OptimizerConfig(learning_rate=0.1),
        loop=LoopConfig(12, steps_per_call=3, checkpoint_every=3, evaluate_every=6),
    )
    broken: int = -1  # the seed whose loss is not finite


def squared_error(params, batch, frozen):
    return Loss({"error": Mean.of((batch["x"] @ params["w"] - batch["y"]) ** 2 + frozen)}, {})


def program(config):
    return Supervised(
        config.fit,
        init=lambda key: {"w": nn.LogicallyPartitioned(jax.random.normal(key, (3,)), (None,))},
        loss=squared_error,
        evaluate=lambda params, frozen, key: {"size": jnp.sum(params["w"] ** 2)},
    )


def toy(seen, stop_at=None):
    """An arm of two stages; `seen` gets the threads that ran it."""

    def build(config):
        first, second = program(config), program(config)

        def run_seed(run, shared):
            seen.append(threading.current_thread().name)
            source = ArraySource(DATA, 8, run.seed)
            frozen = jnp.float32(np.nan if run.seed == config.broken else shared)
            start = first.run(run.stage("first"), source=source, frozen=frozen).params
            if stop_at == run.seed:
                os.kill(os.getpid(), signal.SIGTERM)
            source = ArraySource(DATA, 8, run.seed)
            second.run(run.stage("second"), params=start, source=source, frozen=frozen)
            return {"loss": run.stage("second").history("loss")[-1]}

        return run_seed

    return Experiment(
        paper=Paper(title="Toy", arxiv="0000.00000"),
        arms={"fit": Arm(build)},
        scales={"mini": Config()},
        claims=[],
        prepare=lambda config: lambda run: 0.5 * run.seed,
    )


def start(folder, experiment, *, seeds=(0, 1, 2), together=True, config=None):
    entry = Entry("preferences", "toy", folder / "experiments" / "preferences" / "toy.py")
    config = config or Config()
    work = folder / "runs"
    runner.run(
        experiment, entry, config, "mini", ["fit"], list(seeds), work, Silent(), together=together
    )
    return work / "toy" / "mini" / "fit"


def rows(folder, seed, stage):
    text = (folder / f"seed_{seed}" / stage / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_seeds_together_are_the_seeds_in_turn(tmp_path):
    threads = []
    together = start(tmp_path / "together", toy(threads))
    assert len(set(threads)) == 3
    in_turn = start(tmp_path / "turn", toy(threads), together=False)
    assert len(set(threads)) == 4
    for seed in range(3):
        for stage in ("first", "second"):
            found, expected = (rows(folder, seed, stage) for folder in (together, in_turn))
            assert [row.keys() for row in found] == [row.keys() for row in expected]
            for one, other in zip(found, expected, strict=True):
                for name in other:
                    assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6)


def test_calls_of_one_program_are_one_call():
    calls = []

    def traced(x):
        calls.append(x.shape)
        return 2 * x

    def seed(seat):
        first = seat.call(traced, jnp.float32(seat.member))
        # One seed has a longer way than the others: they need not wait for it.
        return [float(seat.call(traced, first)) for _ in range(1 + seat.member)][-1]

    assert side_by_side([seed] * 3) == [0.0, 4.0, 8.0]
    assert len(calls) == 3  # vmapped over 3 seeds, over 2, over 1


def test_a_seed_that_fails_ends_the_others_and_is_named(tmp_path):
    config = dataclasses.replace(Config(), broken=1)
    with pytest.raises(NonFinite, match="step 1; the last good") as caught:
        start(tmp_path, toy([]), config=config)
    assert "seed 1" in caught.value.__notes__[0]


def test_a_program_that_fails_fails_for_all():
    def seed(seat):
        return seat.call(lambda x: x @ x, jnp.ones((2, 3)))

    with pytest.raises(TypeError, match="dot_general"):
        side_by_side([seed] * 2)


def test_told_to_stop_all_seeds_save_and_go_on_later(tmp_path):
    seen = []
    with terminable(), pytest.raises(KeyboardInterrupt):
        start(tmp_path / "stopped", toy(seen, stop_at=1))
    folder = start(tmp_path / "stopped", toy(seen))
    expected = start(tmp_path / "whole", toy(seen))
    for seed in range(3):
        for stage in ("first", "second"):
            assert rows(folder, seed, stage) == rows(expected, seed, stage)


def test_what_is_finished_is_left_alone(tmp_path):
    seen = []
    start(tmp_path, toy(seen), seeds=(0,))
    start(tmp_path, toy(seen), seeds=(0, 1, 2))
    assert len(seen) == 3
