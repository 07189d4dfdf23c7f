import dataclasses
import math
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardjax.overrides import ABSENT, OverrideError, differences, near_names, override, to_dict


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 10
    shuffle: bool = True
    name: str = "tiny"
    mode: Literal["token", "sequence"] = "token"
    sizes: tuple[int, ...] = (1, 2)
    label: str | None = None
    folder: Path = Path("here")
    actor: Optimizer = Optimizer()
    critic: Optimizer = Optimizer()

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, found {self.steps}")


@pytest.mark.parametrize(
    ("assignment", "field", "value"),
    [
        ("steps=3", "steps", 3),
        ("shuffle=false", "shuffle", False),
        ("shuffle=True", "shuffle", True),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
        ("mode=sequence", "mode", "sequence"),
        ("sizes=4,5,6", "sizes", (4, 5, 6)),
        ("sizes=(4,)", "sizes", (4,)),
        ("sizes=()", "sizes", ()),
        ("label=7", "label", "7"),
        ("label=none", "label", None),
        ("folder=a/b", "folder", Path("a/b")),
        ("actor.learning_rate=1", "actor", Optimizer(learning_rate=1.0)),
        ("actor.clip=none", "actor", Optimizer(clip=None)),
        ("actor.betas=0.5, 0.6", "actor", Optimizer(betas=(0.5, 0.6))),
    ],
)
def test_a_setting_changes_its_field_and_no_other(assignment, field, value):
    changed = override(Config(), [assignment])
    assert changed == dataclasses.replace(Config(), **{field: value})
    assert type(getattr(changed, field)) is type(value)


def test_two_groups_that_share_their_default_are_told_apart():
    changed = override(Config(), ["critic.learning_rate=2"])
    assert changed.critic.learning_rate == 2.0
    assert changed.actor.learning_rate == 1e-3
    with pytest.raises(OverrideError, match=r"^critic\.clip: expected float or none, found 'x'"):
        override(Config(), ["critic.clip=x"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps=1.5", "steps: expected int, found '1.5'"),
        ("actor.learning_rate=fast", "actor.learning_rate: expected float, found 'fast'"),
        ("shuffle=maybe", "shuffle: expected bool (true or false), found 'maybe'"),
        ("mode=tokens", "mode: expected one of token, sequence, found 'tokens'"),
        ("sizes=1,b", "sizes: expected tuple (int, ...), found '1,b'"),
        ("actor.betas=0.5", "actor.betas: expected tuple (float, float), found '0.5'"),
        ("actor=1", "actor: a group of settings cannot be set whole; set actor.learning_rate"),
        ("steps.more=1", "steps.more: no such setting; steps is a value, not a group"),
        ("stps=1", "stps: no such setting; did you mean steps"),
        ("actor.learning_rat=1", "did you mean actor.learning_rate"),
        ("steps", "expected dotted.name=value, found 'steps'"),
        ("steps=0", "steps=0: steps: expected at least 1, found 0"),
    ],
)
def test_a_mistake_names_field_expectation_and_finding(assignment, message):
    with pytest.raises(OverrideError) as caught:
        override(Config(), [assignment])
    assert message in str(caught.value)


def test_near_names_fall_back_to_all():
    assert near_names("dpo_", ["dpo", "kto"]) == "did you mean dpo?"
    assert near_names("zzz", ["dpo", "kto"]) == "expected one of dpo, kto"
    assert near_names("zzz", []) == "there are none"


def test_to_dict_holds_what_json_has():
    plain = to_dict(Config(folder=Path("a")))
    assert plain["folder"] == "a"
    assert plain["sizes"] == [1, 2]
    assert plain["actor"] == {"learning_rate": 1e-3, "betas": [0.9, 0.95], "clip": 1.0}


def test_differences_are_dotted_and_know_absent_fields():
    a = Config()
    b = dataclasses.replace(a, steps=4, critic=Optimizer(clip=None))
    assert differences(a, b) == {"steps": (10, 4), "critic.clip": (1.0, None)}
    assert differences(a, to_dict(a)) == {}
    assert differences({"x": 1}, {"y": 2}) == {"x": (1, ABSENT), "y": (ABSENT, 2)}
    assert differences({"x": math.nan}, {"x": math.nan}) == {}


@given(
    steps=st.integers(1, 10**9),
    rate=st.floats(allow_nan=False),
    sizes=st.lists(st.integers(), max_size=4),
    shuffle=st.booleans(),
)
def test_what_is_written_is_read_back(steps, rate, sizes, shuffle):
    config = override(
        Config(),
        [
            f"steps={steps}",
            f"actor.learning_rate={rate}",
            f"sizes={','.join(map(str, sizes))}",
            f"shuffle={shuffle}",
        ],
    )
    assert (config.steps, config.actor.learning_rate) == (steps, rate)
    assert (config.sizes, config.shuffle) == (tuple(sizes), shuffle)
