"""The report of a small run folder, and what it says of broken ones."""

import base64
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO, StringIO

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from rewardjax import plots, report, terminal
from rewardjax import summary as summaries
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.pictures import png
from rewardjax.training.run import Run, Silent


@dataclass(frozen=True)
class Config:
    steps: int = 4


def build(config):
    return lambda run, shared: {}


EXPERIMENT = Experiment(
    paper=Paper("Rewards <b>& pipes | here", "2510.08026"),
    arms={"grpo": Arm(build), "pear": Arm(build, note="phase entropy"), "late": Arm(build)},
    scales={"mini": Config()},
    claims=[
        Claim("length", "pear", "<", "grpo", source="Table 2"),
        Claim("accuracy", "pear", ">", "grpo", margin=0.5, note="too small a model"),
        Claim("accuracy", "late", ">", "grpo"),
    ],
    reported={"pear": {"accuracy": 0.81, "unmeasured": 3.0}},
    curves=("length", "never/logged"),
)
VALUES = {
    "grpo": {"accuracy": [0.5] * 5, "length": [1200.0, 1210, 1190, 1200, 1200]},
    "pear": {"accuracy": [0.5, 0.6, 0.7, 0.6, 0.6], "length": [800.0] * 5, "odd": [float("nan")]},
}
DETAILS = {
    "slug": "pear",
    "family": "reasoning",
    "scale": "mini",
    "seeds": range(5),
    "seconds": 61.4,
    "hardware": "2 CPU cores",
    "versions": {"jax": "0.10.2"},
    "commit": "abc123",
}


def summary():
    return summaries.summarise(EXPERIMENT, VALUES, **DETAILS)


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(tmp_path):
    """A run of two arms and two seeds, with curves and samples."""
    root = tmp_path / "pear" / "mini"
    for offset, arm in enumerate(("grpo", "pear")):
        for seed in (0, 1):
            stage = root / arm / f"seed_{seed}" / "train"
            metrics = [
                {
                    "step": step,
                    "length": 100.0 - 10 * offset * step + seed,
                    "kl": 0.3 * step,
                    "gold": step - 0.1 * step**2 - offset,
                    "proxy": 1.0 * step,
                }
                for step in range(9)
            ]
            write_lines(stage / "metrics.jsonl", metrics)
            samples = [
                {"step": step, "prompt": f"2+{step}|=", "response": "<script>\n```4", "reward": 1.5}
                for step in (0, 8, 8, 8, 8)
            ]
            write_lines(stage / "samples.jsonl", samples)
    (root / "summary.json").write_text(json.dumps(summary(), allow_nan=False))
    return root


def test_a_summary_holds_intervals_and_verdicts():
    made = summary()
    assert made["arms"]["pear"]["length"] == {
        "mean": 800.0,
        "low": 800.0,
        "high": 800.0,
        "values": [800.0] * 5,
    }
    assert made["arms"]["pear"]["accuracy"]["mean"] == pytest.approx(0.6)
    assert made["arms"]["pear"]["odd"] == {
        "mean": None,
        "low": None,
        "high": None,
        "values": [None],
    }
    assert [claim["verdict"] for claim in made["claims"]] == ["holds", "fails", "inconclusive"]
    assert made["claims"][0]["difference"] == pytest.approx(-400.0)
    assert made["claims"][1]["note"] == "too small a model"
    assert made["claims"][2]["note"] == "arm late was not run"
    assert made["seeds"] == [0, 1, 2, 3, 4]
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_markdown_shows_arms_claims_and_the_papers_numbers():
    text = report.markdown(summary())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| ✔ holds | length: pear < grpo | -400.0 [-406.0, -394.0] | Table 2 |  |" in rows
    assert any(row.startswith("| ✘ fails | accuracy: pear > grpo (margin 0.500)") for row in rows)
    assert any(row.startswith("| ? inconclusive | accuracy: late > grpo | - |") for row in rows)
    assert (
        "| pear | 0.600 [0.540, 0.660] | 800.0 [800.0, 800.0] | not finite | phase entropy |"
        in rows
    )
    assert "| pear | accuracy | 0.600 [0.540, 0.660] | 0.810 |" in rows
    assert "| pear | unmeasured | - | 3.000 |" in rows
    assert "# Rewards <b>& pipes \\| here" in text
    assert (
        len({row.count("|") for row in rows if "grpo | 0.500" in row or "| arm | acc" in row}) == 1
    )


class Page(HTMLParser):
    """Collects what a page shows and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.sources = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_a_report_is_written_beside_the_summary(folder):
    page_path = report.write_report(folder)
    assert page_path == folder / "report.html"
    page = Page(page_path.read_text(encoding="utf-8"))
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "Rewards <b>& pipes | here" in page.text
    assert page.text.count("response: <script>") == 6  # three samples of the last step, two arms
    assert "prompt: 2+0" not in page.text
    assert "Not logged: never/logged." in page.text
    text = (folder / "report.md").read_text(encoding="utf-8")
    for path in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert imread(folder / path).shape[2] == 4
    assert sorted(path.name for path in folder.glob("*.png")) == [
        "curve_gold_against_proxy.png",
        "curve_length.png",
    ]
    assert "    ```4" in text


def test_a_run_without_logs_still_has_tables(folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "summary.json").write_text((folder / "summary.json").read_text())
    page = Page(report.write_report(bare).read_text(encoding="utf-8"))
    assert page.sources == []
    assert "Not logged: length." in page.text


def test_the_console_shows_the_verdicts_in_colour():
    console = Console(width=80, record=True, file=StringIO(), force_terminal=True)
    console.print(terminal.tables(summary()))
    text = console.export_text(clear=False)
    assert "✔ holds" in text
    assert "0.100 [0.040, 0.160]" in text  # nothing is cut off at 80 columns
    assert "1,200.0 ±6.000" in text
    assert "1 more claims are about arms that were not run" in text
    assert "late" not in text
    coloured = console.export_text(styles=True)
    assert re.search(r"\x1b\[32m✔ holds", coloured)
    assert re.search(r"\x1b\[31m✘ fails", coloured)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made.pop("arms"), "arms: expected dict, found nothing"),
        (lambda made: made.update(seeds=5), "seeds: expected list, found int"),
        (lambda made: made["arms"]["grpo"]["length"].pop("low"), "arms.grpo.length: missing low"),
        (lambda made: made["claims"][1].update(verdict="maybe"), r"claims\[1\].verdict: .*'maybe'"),
    ],
)
def test_a_broken_summary_names_file_and_key(tmp_path, change, message):
    made = summary()
    change(made)
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(made))
    with pytest.raises(ValueError, match=rf"summary.json: {message}"):
        summaries.read_summary(path)


def test_a_missing_or_unreadable_summary_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"summary\.json: no such file"):
        report.write_report(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json: not JSON"):
        report.write_report(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 1', "not JSON"),
        ("[1]", "expected an object"),
        ('{"loss": 1}', "step: expected a number, found None"),
    ],
)
def test_a_broken_line_names_file_and_number(folder, line, message):
    path = folder / "grpo" / "seed_1" / "train" / "metrics.jsonl"
    path.write_text('{"step": 0}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"grpo/seed_1/train/metrics.jsonl:3: {message}"):
        report.write_report(folder)


def test_curves_average_seeds_and_name_what_is_not_logged(folder):
    image = plots.curves(folder, ["length"])["length"]
    assert image.startswith(b"\x89PNG")
    assert np.ptp(imread(BytesIO(image))) > 0.5
    with pytest.raises(ValueError, match="no arm logged 'lenght'; logged: gold, kl, length, proxy"):
        plots.curves(folder, ["lenght"])


def test_the_later_line_of_a_step_counts(tmp_path):
    lines = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 2.0}, {"step": 1, "loss": 5.0}]
    write_lines(tmp_path / "grpo" / "seed_0" / "train" / "metrics.jsonl", lines)
    lines = [{"step": 1, "loss": 7.0}, {"step": 2, "loss": None}, {"step": 3, "loss": float("nan")}]
    write_lines(tmp_path / "grpo" / "seed_10" / "train" / "metrics.jsonl", lines)
    history = plots.read_history(tmp_path)
    steps, mean, deviation = plots._over_seeds(history["train"]["grpo"], "loss")
    np.testing.assert_allclose(steps, [0, 1])
    np.testing.assert_allclose(mean, [1.0, 6.0])
    np.testing.assert_allclose(deviation, [0.0, 1.0])
    assert plots.logged_metrics(history) == {"loss"}


def test_gold_against_proxy_needs_both(folder, tmp_path):
    assert plots.gold_against_proxy(folder).startswith(b"\x89PNG")
    other = tmp_path / "other"
    write_lines(other / "a" / "seed_0" / "train" / "metrics.jsonl", [{"step": 0, "gold": 1.0}])
    assert plots.gold_against_proxy(other) is None
    lines = [{"step": step, "gold": 1.0, "proxy": step} for step in range(3)]
    write_lines(other / "a" / "seed_0" / "train" / "metrics.jsonl", lines)
    assert plots.gold_against_proxy(other).startswith(b"\x89PNG")


def test_seeds_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("seed_10", "seed_9", "seed_x"):
        (tmp_path / name).mkdir()
    assert [path.name for path in plots.seed_folders(tmp_path)] == ["seed_9", "seed_10"]


def test_pictures_of_the_first_seed_are_shown(folder):
    for seed, value in ((0, 1.0), (1, 0.0)):
        with Run(folder / "grpo" / f"seed_{seed}", seed, "grpo", observer=Silent()) as run:
            run.stage("train").picture("digits & more", np.full((2, 2), value))
    page = report.write_report(folder).read_text(encoding="utf-8")
    assert "<figcaption>digits &amp; more</figcaption>" in page
    white = base64.b64encode(png(np.ones((2, 2)))).decode()
    assert page.count(white) == 1
    text = (folder / "report.md").read_text(encoding="utf-8")
    path = re.search(r"!\[digits & more\]\((.*)\)", text).group(1)
    assert (folder / path).read_bytes() == png(np.ones((2, 2)))
