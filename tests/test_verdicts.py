"""What an experiment file may export, and how its claims are judged."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardjax.experiment import RELATIONS, Arm, Claim, Experiment, Paper
from rewardjax.verdicts import interval, judge


@dataclass(frozen=True)
class Config:
    steps: int = 3


@dataclass
class Thawed:
    steps: int = 3


def build(config):
    return lambda run, shared: {"accuracy": 1.0}


ARMS = {"grpo": Arm(build), "pear": Arm(build, note="the paper's")}
EXPERIMENT = partial(
    Experiment, paper=Paper("T", "2510.08026"), arms=ARMS, scales={"mini": Config()}, claims=[]
)


def test_an_experiment_with_known_names_stands():
    claims = [Claim("accuracy", "pear", ">=", "grpo", 0.02), Claim("accuracy", "pear", ">", 0.5)]
    made = EXPERIMENT(claims=claims, first_arms=("pear",), reported={"grpo": {"accuracy": 1}})
    assert made.first_seeds == 5
    assert made.arms["pear"].build(Config())(None, None) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"claims": [Claim("a", "paer", ">", "grpo")]}, r"claims\[0\]: no arm 'paer'.*'pear'\?"),
        ({"claims": [Claim("a", "pear", ">", "gpro")]}, r"claims\[0\]: no arm 'gpro'.*'grpo'\?"),
        ({"first_arms": ("zzz",)}, "first_arms: no arm 'zzz'; the arms are 'grpo', 'pear'"),
        ({"reported": {"grpoo": {}}}, "reported: no arm 'grpoo'"),
        ({"scales": {"paper": Config()}}, "expected 'mini' among them"),
        ({"scales": {"mini": Thawed()}}, "Thawed is not frozen"),
        ({"scales": {"mini": Config}}, "expected an instance"),
        ({"scales": {"mini": Config(), "paper": {"steps": 1}}}, r"scales\['paper'\]"),
        ({"arms": {}}, "arms: expected at least one"),
        ({"arms": {"a/b": Arm(build)}}, "'a/b' cannot name a folder"),
        ({"first_seeds": 0}, "first_seeds: expected at least 1, found 0"),
    ],
)
def test_an_experiment_names_its_fault(fields, message):
    with pytest.raises(ValueError, match=message):
        EXPERIMENT(**fields)


def test_a_bare_function_is_no_arm():
    with pytest.raises(TypeError, match=r"arms\['pear'\]: expected an Arm, found function"):
        EXPERIMENT(arms={"grpo": Arm(build), "pear": build})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "pear", "=>", "grpo"), "expected one of < <= > >= ~, found '=>'"),
        (("a", "pear", ">", "grpo", -0.1), "margin: expected 0 or more"),
        (("a", "pear", ">", "pear"), "compared with itself"),
        (("a", "pear", ">", float("nan")), "baseline: expected a finite number"),
    ],
)
def test_a_claim_names_its_fault(arguments, message):
    with pytest.raises(ValueError, match=message):
        Claim(*arguments)


def verdict(relation, ours, theirs, margin=0.0):
    claim = Claim("m", "ours", relation, "theirs", margin)
    return judge(claim, {"ours": {"m": ours}, "theirs": {"m": theirs}})


def of_points(relation, difference, margin):
    """The verdict where every seed differs by `difference`: the interval is that point."""
    return verdict(relation, [10 + difference] * 5, [10] * 5, margin).verdict


@pytest.mark.parametrize(
    ("relation", "margin", "expected"),
    [  # for differences -2, -1, 0, 1, 2
        (">", 0, "fails fails fails holds holds"),
        (">", 1, "fails fails fails fails holds"),
        (">=", 0, "fails fails holds holds holds"),
        (">=", 1, "fails holds holds holds holds"),
        ("<", 0, "holds holds fails fails fails"),
        ("<", 1, "holds fails fails fails fails"),
        ("<=", 0, "holds holds holds fails fails"),
        ("<=", 1, "holds holds holds holds fails"),
        ("~", 0, "fails fails holds fails fails"),
        ("~", 1, "fails holds holds holds fails"),
    ],
)
def test_relations_at_and_around_their_margins(relation, margin, expected):
    found = [of_points(relation, difference, margin) for difference in (-2, -1, 0, 1, 2)]
    assert " ".join(found) == expected


@pytest.mark.parametrize("relation", RELATIONS)
def test_an_interval_across_the_margin_is_inconclusive(relation):
    found = verdict(relation, [-3.0, 3.0, -3.0, 3.0, 0.5], [0.0] * 5, 1.0)
    assert found.low < -1 < 1 < found.high
    assert found.verdict == "inconclusive"
    assert found.note == ""


def test_an_equivalence_needs_the_whole_interval_inside():
    # Means of resamples of (0, 1, 0, 1, 0): the interval is [0, 0.8].
    ours = [0.0, 1.0, 0.0, 1.0, 0.0]
    assert verdict("~", ours, [0.0] * 5, 0.9).verdict == "holds"
    assert verdict("~", ours, [0.0] * 5, 0.5).verdict == "inconclusive"


def test_a_rounding_error_is_no_difference():
    # 0.48 - 0.5 is a little below -0.02 in floating point, and more so in float32.
    assert of_points(">=", 0.0, 0.0) == "holds"
    assert verdict(">=", [0.48] * 5, [0.5] * 5, 0.02).verdict == "holds"
    float32 = [float(np.float32(0.48))] * 5
    assert verdict(">=", float32, [0.5] * 5, 0.02).verdict == "holds"
    assert verdict(">", [0.1 + 0.2] * 5, [0.3] * 5).verdict == "fails"
    assert verdict(">", [2e-9] * 5, [1e-9] * 5).verdict == "holds"


def test_seeds_are_paired():
    theirs = [0.1, 0.9, 0.4, 0.6, 0.2]
    found = verdict(">", [value + 0.01 for value in theirs], theirs)
    assert found.verdict == "holds"
    assert found.difference == pytest.approx(0.01)


def test_a_number_can_be_the_baseline():
    found = judge(Claim("m", "ours", "<", 0.5), {"ours": {"m": [0.1, 0.2, 0.3, 0.2, 0.2]}})
    assert found.verdict == "holds"
    assert found.difference == pytest.approx(-0.3)


def test_one_seed_decides_nothing():
    found = verdict(">", [5.0], [0.0])
    assert found == (5.0, 5.0, 5.0, "inconclusive", "judged from one seed")


def test_few_seeds_are_judged_and_said():
    found = verdict(">", [5.0, 6.0, 5.0], [0.0] * 3)
    assert (found.verdict, found.note) == ("holds", "3 seeds; a recorded verdict needs 5")


def test_unequal_seeds_pair_the_common_ones():
    found = verdict(">", [1.0] * 7, [0.0] * 5)
    assert (found.verdict, found.difference) == ("holds", 1.0)
    assert found.note == "paired the first 5 seeds: ours has 7, theirs has 5"


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"ours": {"m": [1.0] * 5}}, "arm theirs was not run"),
        ({"ours": {"m": [1.0] * 5}, "theirs": {}}, "m of theirs is missing"),
        (
            {"ours": {"m": [1.0, None, float("inf")]}, "theirs": {"m": [0.0] * 3}},
            "m of ours is missing or not finite in 2 of 3 seeds",
        ),
    ],
)
def test_a_number_that_is_missing_decides_nothing(values, note):
    found = judge(Claim("m", "ours", ">", "theirs"), values)
    assert found == (None, None, None, "inconclusive", note)


NUMBERS = st.lists(st.floats(-100, 100), min_size=5, max_size=8)


@given(NUMBERS, st.floats(0, 10))
def test_mirrored_claims_agree(values, margin):
    zeros = [0.0] * len(values)
    negated = [-value for value in values]
    for relation, mirrored in ((">", "<"), (">=", "<="), ("~", "~")):
        forward = verdict(relation, values, zeros, margin)
        backward = verdict(mirrored, negated, zeros, margin)
        assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))
        assert forward.verdict == backward.verdict


@given(NUMBERS)
def test_better_by_a_margin_implies_no_worse(values):
    zeros = [0.0] * len(values)
    if verdict(">", values, zeros, 1.0).verdict == "holds":
        assert verdict(">=", values, zeros, 1.0).verdict == "holds"
        assert verdict("<", values, zeros, 1.0).verdict == "fails"


def test_interval_is_the_bootstrap_of_the_mean():
    assert interval([2, 2, 2]) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="finite"):
        interval([1.0, None])
