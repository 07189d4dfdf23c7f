"""Training curves of a run folder, drawn to PNG.

Reads `<folder>/<arm>/seed_<n>/<stage>/metrics.jsonl`: one JSON object a line, with "step" and one
number a metric.
"""

import io
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rewardjax.evaluation.curves import gold_proxy_curve
from rewardjax.paths import AnyPath

# Okabe and Ito's palette: told apart by colour-blind readers, black kept for the legend.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
# A cycle of dashes starts over with each round of colours.
DASHES = ("solid", "dashed", "dotted")

# stage -> arm -> one {step: record} for each seed
History = dict[str, dict[str, list[dict[float, dict[str, Any]]]]]
# steps, mean over seeds, standard deviation over seeds
Band = tuple[np.ndarray, np.ndarray, np.ndarray]


def read_jsonl(path: AnyPath) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, each with a number under "step"; blank lines are skipped.

    Raises:
      ValueError: a line is not such an object; the message names file and line.
    """
    records = []
    # Not splitlines(): it would also cut at the line separators that a sample may hold.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number}: expected an object, found {line.strip()[:40]!r}")
        if not isinstance(record.get("step"), int | float):
            raise ValueError(
                f"{path}:{number}: step: expected a number, found {record.get('step')!r}"
            )
        records.append(record)
    return records


def seed_folders(arm: AnyPath) -> list[AnyPath]:
    """The folders `seed_<n>` of an arm, in the order of n; none if the arm has no folder."""
    numbered = [path for path in arm.glob("seed_*") if path.name[len("seed_") :].isdigit()]
    return sorted(numbered, key=lambda path: int(path.name[len("seed_") :]))


def read_history(folder: AnyPath, arms: Sequence[str] | None = None) -> History:
    """Everything logged in a run folder, by stage, arm and seed.

    Where a step was logged twice, as a resumed run may, the later line counts.

    Args:
      folder: `runs/<slug>/<scale>`.
      arms: which, in the order to draw them; every folder with seeds, sorted, without it.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: a broken line; the message names file and line.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run folder")
    if arms is None:
        arms = sorted(path.name for path in folder.iterdir() if seed_folders(path))
    history: History = {}
    for arm in arms:
        for seed in seed_folders(folder / arm):
            for path in sorted(seed.glob("*/metrics.jsonl")):
                steps = {float(record["step"]): record for record in read_jsonl(path)}
                history.setdefault(path.parent.name, {}).setdefault(arm, []).append(steps)
    return history


def logged_metrics(history: History) -> set[str]:
    """The names of every number logged, "step" left out."""
    return {
        name
        for arms in history.values()
        for seeds in arms.values()
        for steps in seeds
        for record in steps.values()
        for name in record
        if name != "step" and _number(record, name) is not None
    }


def curves(
    folder: AnyPath, names: Sequence[str], arms: Sequence[str] | None = None
) -> dict[str, bytes]:
    """A PNG for each metric: its mean over seeds against the step, one line an arm.

    The band is one standard deviation over seeds either way. A metric logged by several stages has
    a panel for each. Numbers that are not finite are left out.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: a broken line, or a metric that no arm logged.
    """
    history = read_history(folder, arms)
    images = {}
    for name in names:
        panels = _panels(history, name)
        if not panels:
            raise ValueError(
                f"{folder}: no arm logged {name!r}; logged: "
                f"{', '.join(sorted(logged_metrics(history))) or 'nothing'}"
            )

        images[name] = _figure(panels, partial(_draw_band, name))
    return images


def gold_against_proxy(folder: AnyPath, arms: Sequence[str] | None = None) -> bytes | None:
    """A PNG of gold (solid) and proxy reward (dashed) over the distance from the first policy.

    The distance is `sqrt(KL)`, binned as in `gold_proxy_curve`, where every arm of the stage logs
    "kl" (nats); the step otherwise. Evaluations ("eval/gold", ...) are drawn where there are any.
    None if no arm logs both "gold" and "proxy" in one stage.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: a broken line.
    """
    history = read_history(folder, arms)
    kind = "eval/" if "eval/gold" in logged_metrics(history) else ""
    gold, proxy, kl = (_panels(history, kind + name) for name in ("gold", "proxy", "kl"))
    panels: dict[str, dict[str, Band]] = {}
    over: dict[str, str] = {}
    for stage, measured in gold.items():
        both = [arm for arm in measured if arm in proxy.get(stage, {})]
        far = kl.get(stage, {}) if all(arm in kl.get(stage, {}) for arm in both) else {}
        for arm in both:
            lines = _gold_proxy_lines(measured[arm], proxy[stage][arm], far.get(arm))
            if lines[0].size:
                panels.setdefault(stage, {})[arm] = lines
        over[stage] = "√KL (√nats)" if far else "step"
    if not panels:
        return None
    legend = [
        Line2D([], [], color="black", linestyle="solid", label="gold"),
        Line2D([], [], color="black", linestyle="dashed", label="proxy"),
    ]
    return _figure(panels, partial(_draw_gold_proxy, over), legend)


def _draw_band(name: str, axes: Axes, stage: str, band: Band, style: dict[str, Any]) -> None:
    steps, mean, deviation = band
    axes.plot(steps, mean, marker="o" if steps.size == 1 else None, **style)
    axes.fill_between(
        steps, mean - deviation, mean + deviation, color=style["color"], alpha=0.18, linewidth=0
    )
    axes.set(xlabel="step", ylabel=name, title=stage)


def _draw_gold_proxy(
    over: dict[str, str], axes: Axes, stage: str, lines: Band, style: dict[str, Any]
) -> None:
    x, gold, proxy = lines
    style = {**style, "marker": "." if x.size <= 30 else None}
    axes.plot(x, gold, **{**style, "linestyle": "solid"})
    axes.plot(x, proxy, **{**style, "linestyle": "dashed", "alpha": 0.8})
    axes.set(xlabel=over[stage], ylabel="reward", title=stage)


def _gold_proxy_lines(gold: Band, proxy: Band, kl: Band | None) -> Band:
    """x, gold and proxy of one arm at the steps that have all of them."""
    logged = [gold, proxy] if kl is None else [gold, proxy, kl]
    steps = np.array(sorted(set.intersection(*(set(band[0].tolist()) for band in logged))))
    means = [band[1][np.isin(band[0], steps)] for band in logged]
    if kl is None or not steps.size:
        return steps, means[0], means[1]
    binned = gold_proxy_curve(means[2], means[0], means[1])
    return binned.distance, binned.gold, binned.proxy


def _panels(history: History, name: str) -> dict[str, dict[str, Band]]:
    """stage -> arm -> the metric's band, where it was logged."""
    panels: dict[str, dict[str, Band]] = {}
    for stage, arms in history.items():
        for arm, seeds in arms.items():
            band = _over_seeds(seeds, name)
            if band[0].size:
                panels.setdefault(stage, {})[arm] = band
    return panels


def _over_seeds(seeds: list[dict[float, dict[str, Any]]], name: str) -> Band:
    """Mean and standard deviation at each step, over the seeds that logged it."""
    logged: dict[float, list[float]] = {}
    for steps in seeds:
        for step, record in steps.items():
            number = _number(record, name)
            if number is not None:
                logged.setdefault(step, []).append(number)
    order = sorted(logged)
    return (
        np.array(order),
        np.array([np.mean(logged[step]) for step in order]),
        np.array([np.std(logged[step]) for step in order]),
    )


def _number(record: dict[str, Any], name: str) -> float | None:
    """The record's finite number of that name, or None."""
    number = record.get(name)
    if isinstance(number, int | float) and math.isfinite(number):
        return float(number)
    return None


def _figure(
    panels: dict[str, dict[str, Band]],
    draw: Callable[[Axes, str, Band, dict[str, Any]], None],
    legend: Sequence[Line2D] = (),
) -> bytes:
    """A panel for each stage, drawn arm by arm, and one legend below; as PNG."""
    figure = Figure(figsize=(max(6.4, 5.2 * len(panels)), 4.2), layout="constrained")
    arms = list(dict.fromkeys(arm for drawn in panels.values() for arm in drawn))
    styles: dict[str, dict[str, Any]] = {
        arm: {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
            "linewidth": 1.8,
        }
        for index, arm in enumerate(arms)
    }
    for axes, stage in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for arm, band in panels[stage].items():
            draw(axes, stage, band, styles[arm])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize("medium")
    handles = [Line2D([], [], label=arm, **styles[arm]) for arm in arms] + list(legend)
    columns = min(4, len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()
