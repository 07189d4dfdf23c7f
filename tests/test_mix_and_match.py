"""Parts of one experiment exchanged for those of others."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rewardjax import catalogue
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.training.run import Run

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "credits_by_rewards.py"


@dataclass(frozen=True)
class Config:
    steps: int = 1


def train(config, *, credit, reward=len, valued=False):
    return lambda run, shared: {"found": credit + reward + valued}


EXPERIMENT = Experiment(
    paper=Paper("A paper", "2501.00001"),
    arms={
        "base": Arm(partial(train, credit=1)),
        "critic": Arm(partial(train, credit=2, valued=True)),
    },
    scales={"mini": Config()},
    claims=[Claim("found", "critic", ">", "base")],
    reported={"base": {"found": 1.0}},
    first_arms=("base",),
)


def test_every_combination_is_an_arm_that_keeps_the_other_parts():
    claim = Claim("found", "b+y", ">", "a+x")
    crossed = EXPERIMENT.with_parts(
        "critic", claims=[claim], credit={"a": 10, "b": 20}, reward={"x": 100, "y": 200}
    )
    found = {name: arm.build(Config())(None, None)["found"] for name, arm in crossed.arms.items()}
    assert found == {"a+x": 111, "a+y": 211, "b+x": 121, "b+y": 221}
    assert list(crossed.claims) == [claim]
    assert not crossed.reported
    assert not crossed.first_arms
    assert set(EXPERIMENT.arms) == {"base", "critic"}


@pytest.mark.parametrize(
    ("arm", "parts", "message"),
    [
        ("crtic", {"credit": {"a": 1}}, "with_parts: no arm 'crtic'; did you mean 'critic'"),
        ("base", {"loss": {"a": 1}}, "no part 'loss'; it takes credit, reward, valued"),
        ("base", {"credit": {}}, "credit: expected at least one choice, found none"),
    ],
)
def test_what_cannot_be_exchanged_is_named(arm, parts, message):
    with pytest.raises(ValueError, match=message):
        EXPERIMENT.with_parts(arm, **parts)


def test_the_documented_ablation_runs(tmp_path):
    _, experiment = catalogue.load(str(EXAMPLE))
    assert list(experiment.arms) == [
        f"{credit}+{reward}"
        for credit in ("grpo", "rloo", "tempo")
        for reward in ("verified", "marks")
    ]
    smoke = experiment.scales["smoke"]
    with Run(tmp_path / "shared", 0, "prepare") as run:
        shared = experiment.prepare(smoke)(run)
    with Run(tmp_path / "arm", 0, "tempo+marks") as run:
        found = experiment.arms["tempo+marks"].build(smoke)(run, shared)
        marks = run.stage("rl").history("reward/marks")
    assert np.isfinite(found["accuracy"])
    assert np.all((marks >= 0) & (marks <= 1))
