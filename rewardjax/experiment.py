"""What an experiment file exports: a paper, the arms compared, the claims judged."""

import dataclasses
import difflib
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

RELATIONS = ("<", "<=", ">", ">=", "~")


@dataclass(frozen=True)
class Paper:
    """The paper: its title, its arXiv number ("2510.08026") and its authors' code, if any."""

    title: str
    arxiv: str
    code: str = ""


@dataclass(frozen=True)
class Arm:
    """One side of the comparison: the method, a baseline or an ablation.

    Attributes:
      build: `build(config) -> run_seed`, called once: it makes the jitted programs. Then
        `run_seed(run, shared) -> {metric: number}` runs one seed; `run` is the runner's handle
        on that seed (key, logging, checkpoints), `shared` is what `Experiment.prepare` made.
      note: a line for the report on what this arm is.
    """

    build: Callable[..., Any]
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement on `arm - baseline`, judged over seeds by `rewardjax.verdicts.judge`.

    Attributes:
      metric: the name that the arms report.
      arm: the arm claimed about.
      relation: "<" or ">" (by more than `margin`), "<=" or ">=" (no worse than by `margin`),
        "~" (within `margin` either way).
      baseline: another arm, or a number.
      margin: in the metric's unit, at least 0.
      source: where the paper says so ("Table 2").
      note: a line for the report, such as why a claim fails in miniature.

    Raises:
      ValueError: an unknown relation, a negative margin, a baseline that is not finite, or an arm
        compared with itself.
    """

    metric: str
    arm: str
    relation: str
    baseline: str | int | float
    margin: int | float = 0.0
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        where = f"claim on {self.metric!r} of {self.arm!r}"
        if self.relation not in RELATIONS:
            raise ValueError(
                f"{where}: relation: expected one of {' '.join(RELATIONS)}, found {self.relation!r}"
            )
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"{where}: margin: expected 0 or more, found {self.margin}")
        if self.baseline == self.arm:
            raise ValueError(f"{where}: baseline: the arm is compared with itself")
        if not isinstance(self.baseline, str) and not math.isfinite(self.baseline):
            raise ValueError(f"{where}: baseline: expected a finite number, found {self.baseline}")


@dataclass(frozen=True)
class Experiment:
    """One paper: arms that share data, model and budget, and what is claimed of them.

    The family and the slug are the experiment file's place, not fields.

    Attributes:
      arms: by name; a name is also a folder's.
      scales: a frozen dataclass of settings for each scale; "mini" among them.
      claims: judged over the seeds of a run.
      prepare: `prepare(config) -> (run) -> shared`, run once a seed before the arms.
      reported: the paper's own numbers, `{arm: {metric: number}}`.
      inapplicable: `inapplicable(config) -> {arm: reason}`, the arms that cannot be run with a
        configuration (on data that lack what they learn from); none without it.
      first_arms: what a plain run takes of those that can be run; all arms when empty.
      first_seeds: how many seeds a plain run takes, at least 1.
      curves: names of logged metrics to draw over steps.
      workloads: `workloads(config) -> [Workload]`, the device programs of a scale that a TPU runs, for
        `rewardjax compile`; none without it.
      topology: the slice that the `paper` scale is meant for.

    Raises:
      ValueError: an arm that does not exist is named, a name cannot be a folder's, "mini" is
        missing, or a scale is not an instance of a frozen dataclass.
      TypeError: a value of `arms` is not an `Arm`.
    """

    paper: Paper
    arms: Mapping[str, Arm]
    scales: Mapping[str, Any]
    claims: Sequence[Claim]
    prepare: Callable[..., Any] | None = None
    reported: Mapping[str, Mapping[str, int | float]] = field(default_factory=dict)
    inapplicable: Callable[[Any], Mapping[str, str]] | None = None
    first_arms: tuple[str, ...] = ()
    first_seeds: int = 5
    curves: tuple[str, ...] = ()
    workloads: Callable[[Any], Sequence[Any]] | None = None
    topology: str = "v5e:4x4"

    def __post_init__(self) -> None:
        _check_arms(self.arms)
        _check_scales(self.scales)
        for index, claim in enumerate(self.claims):
            named = [claim.arm, claim.baseline]
            _check_named(
                f"claims[{index}]", [name for name in named if isinstance(name, str)], self.arms
            )
        _check_named("first_arms", self.first_arms, self.arms)
        _check_named("reported", self.reported, self.arms)
        if self.first_seeds < 1:
            raise ValueError(f"first_seeds: expected at least 1, found {self.first_seeds}")

    def with_parts(
        self, arm: str, /, *, claims: Sequence[Claim] = (), **parts: Mapping[str, Any]
    ) -> "Experiment":
        """The same task, data and budget with other parts in one arm: every combination is an arm.

        Args:
          arm: the arm whose parts are exchanged.
          claims: on the new arms; those of the paper are about others.
          **parts: for each keyword of the arm's `build` what to pass, by name:
            `credit={"grpo": group_relative, "rloo": leave_one_out}`.

        Returns:
          An experiment with an arm for each combination, named after its parts: `"grpo+verified"`.

        Raises:
          ValueError: there is no such arm, its `build` does not take a part, or a part has no choice.
        """
        _check_named("with_parts", [arm], self.arms)
        build = self.arms[arm].build
        taken = [
            p.name for p in inspect.signature(build).parameters.values() if p.kind == p.KEYWORD_ONLY
        ]
        for name, choices in parts.items():
            if name not in taken:
                known = ", ".join(taken) or "none"
                raise ValueError(
                    f"with_parts: arm {arm!r} takes no part {name!r}; it takes {known}"
                )
            if not choices:
                raise ValueError(f"with_parts: {name}: expected at least one choice, found none")
        arms = {}
        for chosen in itertools.product(*(choices.items() for choices in parts.values())):
            keywords = dict(zip(parts, (part for _, part in chosen), strict=True))
            arms["+".join(name for name, _ in chosen)] = Arm(partial(build, **keywords))
        return dataclasses.replace(
            self, arms=arms, claims=claims, reported={}, first_arms=(), inapplicable=None
        )


def _check_arms(arms: Mapping[str, Arm]) -> None:
    if not arms:
        raise ValueError("arms: expected at least one, found none")
    for name, arm in arms.items():
        if not isinstance(arm, Arm):
            raise TypeError(f"arms[{name!r}]: expected an Arm, found {type(arm).__name__}")
        if not name or name.startswith(".") or "/" in name:
            raise ValueError(f"arms: {name!r} cannot name a folder")


def _check_scales(scales: Mapping[str, Any]) -> None:
    if "mini" not in scales:
        raise ValueError(f"scales: expected 'mini' among them, found {sorted(scales)}")
    for name, config in scales.items():
        parameters = getattr(config, "__dataclass_params__", None)
        if isinstance(config, type) or not dataclasses.is_dataclass(config):
            raise ValueError(
                f"scales[{name!r}]: expected an instance of a frozen dataclass, found {config!r}"
            )
        if not (parameters and parameters.frozen):
            raise ValueError(
                f"scales[{name!r}]: the dataclass {type(config).__name__} is not frozen"
            )


def _check_named(where: str, names: Iterable[str], arms: Mapping[str, Arm]) -> None:
    for name in names:
        if name not in arms:
            near = difflib.get_close_matches(name, arms, n=3)
            if near:
                hint = f"did you mean {' or '.join(map(repr, near))}?"
            else:
                hint = f"the arms are {', '.join(map(repr, arms))}"
            raise ValueError(f"{where}: no arm {name!r}; {hint}")
