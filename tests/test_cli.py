"""The command line in process, on a toy experiment in a folder of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from rich.console import Console

from rewardjax import progress
from rewardjax.cli import main
from rewardjax.data.formats import open_preferences

TOY = '''
"""A toy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rewardjax.experiment import Arm, Claim, Experiment, Paper

COUNTER = Path(__file__).parents[2] / "calls.txt"
BROKEN = Path(__file__).parents[2] / "interrupt"


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 2
    optimizer: Optimizer = Optimizer()


def arm(name, gain):
    def build(config):
        def run_seed(run, shared):
            with COUNTER.open("a") as file:
                file.write(f"{name} {run.seed}\\n")
            if name == "better" and BROKEN.exists():
                raise KeyboardInterrupt
            if config.steps > 5:
                raise ValueError(f"steps: expected at most 5, found {config.steps}")
            for step in range(config.steps):
                run.log(step, {"loss": 1.0 / (step + 1)})
                run.progress(step + 1, config.steps, {"loss": 1.0 / (step + 1)})
            return {"score": run.seed + gain * config.optimizer.learning_rate}

        return run_seed

    return Arm(build)


EXPERIMENT = Experiment(
    paper=Paper(title="A toy", arxiv="0000.00000"),
    arms={"plain": arm("plain", 0), "better": arm("better", 1), "extra": arm("extra", 2)},
    scales={"mini": Config(), "smoke": Config(steps=1)},
    claims=[Claim("score", "better", ">", "plain", source="Table 1")],
    first_arms=("plain", "better"),
    first_seeds=2,
)
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    family = tmp_path / "experiments" / "preferences"
    family.mkdir(parents=True)
    (family / "toy.py").write_text(TOY)
    (family / "_shared.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REWARDJAX_CACHE", str(jax.config.jax_compilation_cache_dir))
    return tmp_path


def calls(place: Path) -> list[str]:
    path = place / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_run_takes_the_experiments_own_arms_and_seeds(place, capsys):
    assert main(["run", "toy", "--quiet"]) == 0
    assert calls(place) == ["plain 0", "better 0", "plain 1", "better 1"]
    out = capsys.readouterr().out
    assert "A toy" in out
    assert "report: runs/toy/mini/report.html" in out
    assert (place / "runs" / "toy" / "mini" / "report.html").is_file()
    assert not (place / "results").exists()


def test_typing_it_again_runs_nothing_and_an_interrupted_run_goes_on(place, capsys):
    (place / "interrupt").touch()
    assert main(["run", "toy"]) == 130
    error = capsys.readouterr().err
    assert "saved in runs/toy/mini" in error
    assert "same command again" in error
    (place / "interrupt").unlink()
    assert main(["run", "toy"]) == 0
    assert calls(place) == ["plain 0", "better 0", "better 0", "plain 1", "better 1"]
    assert main(["run", "toy"]) == 0
    assert len(calls(place)) == 5


def test_arms_seeds_scale_and_settings(place, capsys):
    command = ["run", "experiments/preferences/toy.py", "--scale", "smoke", "--arms", "extra,plain"]
    code = main(
        [
            *command,
            "--seeds",
            "1",
            "--set",
            "optimizer.learning_rate=0.25",
            "--json",
            "--workdir",
            "w",
        ]
    )
    assert code == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["arms"]["extra"]["score"]["values"] == [0.5]
    assert set(summary["arms"]) == {"plain", "extra"}
    assert (place / "w" / "toy" / "smoke" / "config.json").is_file()
    assert "judged from one seed" in captured.err
    assert main(["run", "preferences/toy", "--arms", "all", "--seeds", "1", "--quiet"]) == 0
    assert calls(place)[2:] == ["plain 0", "better 0", "extra 0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "toi"], "no experiment 'toi'; did you mean toy?"),
        (["run", "preferences/toi"], "did you mean preferences/toy?"),
        (["run", "experiments/preferences/toi.py"], "toi.py: no such file; did you mean toy?"),
        (["run", "toy", "--arms", "beter"], "no arm 'beter'; did you mean better"),
        (["run", "toy", "--scale", "mimi"], "no scale 'mimi'; did you mean mini?"),
        (["run", "toy", "--set", "step=1"], "step: no such setting; did you mean steps?"),
        (["run", "toy", "--set", "steps=x"], "steps: expected int, found 'x'"),
        (["run", "toy", "--on-bad-record", "skip"], "this experiment reads no records"),
        (["run", "toy", "--seeds", "0"], "expected a number from 1, found '0'"),
        (["list", "--family", "preference"], "no family 'preference'; did you mean preferences?"),
        (["report", "nowhere"], "nowhere: no such folder of runs"),
        (["report", "experiments"], "experiments: no run in it"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(place, capsys, arguments, message):
    before = {path for path in place.rglob("*") if "__pycache__" not in path.parts}
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert {path for path in place.rglob("*") if "__pycache__" not in path.parts} == before


def test_other_settings_in_the_same_folder_are_refused(place, capsys):
    assert main(["run", "toy", "--quiet"]) == 0
    assert main(["run", "toy", "--quiet", "--set", "optimizer.learning_rate=1"]) == 2
    assert "optimizer.learning_rate: 0.5 there, 1.0 here" in capsys.readouterr().err


def test_what_an_experiment_refuses_is_a_message_with_the_trace_in_a_file(place, capsys):
    assert main(["run", "toy", "--quiet", "--set", "steps=6"]) == 1
    error = capsys.readouterr().err
    assert "steps: expected at most 5, found 6" in error
    assert "in arm 'plain', seed 0" in error
    assert "Traceback" not in error
    trace = place / "runs" / "toy" / "mini" / "error.txt"
    assert f"traceback: {trace.relative_to(place)}" in error
    assert "raise ValueError(f" in trace.read_text()


def test_a_workdir_that_cannot_be_written_exits_1(place, capsys):
    (place / "blocked").write_text("")
    assert main(["run", "toy", "--quiet", "--workdir", "blocked"]) == 1
    assert "cannot write blocked" in capsys.readouterr().err


def test_prepare_writes_what_tfds_reads(place, capsys):
    for split, rows in {"train": 3, "test": 2}.items():
        row = json.dumps({"prompt": "Which?", "responses": ["this", "that"]}) + "\n"
        (place / f"{split}.jsonl").write_text(row * rows + "{}\n" * (split == "train"))
    command = ["prepare", "jsonl:{split}.jsonl", "pairs@tfds"]
    assert main(command) == 2
    assert "train.jsonl:4: prompt: expected" in capsys.readouterr().err
    assert main([*command, "--on-bad-record", "skip"]) == 0
    out = capsys.readouterr().out
    assert "train: 3 records; left out 1: prompt: expected" in out
    assert "data=tfds:pairs@tfds" in out
    assert len(open_preferences("tfds:pairs@tfds", "train").records) == 3
    assert main([*command, "--on-bad-record", "skip"]) == 2
    assert "expected no data set there yet" in capsys.readouterr().err
    assert main(["prepare", "hh:nowhere", "pairs"]) == 2
    assert "expected NAME@DATA_DIR, found 'pairs'" in capsys.readouterr().err


def test_list_describes_every_experiment(place, capsys):
    assert main(["run", "toy", "--quiet", "--record"]) == 0
    assert "recorded: " in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["slug"], entry["family"], entry["title"]) == ("toy", "preferences", "A toy")
    assert entry["arms"] == ["plain", "better", "extra"]
    assert entry["scales"] == ["mini", "smoke"]
    assert entry["claims"][0]["source"] == "Table 1"
    assert entry["recorded"] is True
    assert main(["list"]) == 0
    assert "toy" in capsys.readouterr().out


def test_list_shows_the_others_beside_a_broken_file(place, capsys):
    (place / "experiments" / "preferences" / "empty.py").write_text("")
    (place / "experiments" / "preferences" / "wrong.py").write_text("import nothing_of_the_name")
    assert main(["list", "--json"]) == 1
    captured = capsys.readouterr()
    assert [entry["slug"] for entry in json.loads(captured.out)] == ["toy"]
    assert "empty.py: CatalogueError: " in captured.err
    assert "wrong.py: ModuleNotFoundError: " in captured.err


def test_a_slug_of_two_families_must_say_which(place, capsys):
    (place / "experiments" / "reasoning").mkdir()
    (place / "experiments" / "reasoning" / "toy.py").write_text(TOY)
    assert main(["run", "toy"]) == 2
    assert "preferences/toy or reasoning/toy" in capsys.readouterr().err


def test_report_rewrites_what_is_finished(place, capsys):
    assert main(["run", "toy", "--quiet"]) == 0
    folder = place / "runs" / "toy" / "mini"
    (folder / "report.html").unlink()
    unfinished = place / "runs" / "toy" / "smoke"
    unfinished.mkdir()
    (unfinished / "config.json").write_text("{}")
    capsys.readouterr()
    assert main(["report", "--json"]) == 0
    captured = capsys.readouterr()
    assert [summary["slug"] for summary in json.loads(captured.out)] == ["toy"]
    assert "runs/toy/smoke: not finished" in captured.err
    assert (folder / "report.html").is_file()
    assert main(["report", "runs/toy/mini", "runs"]) == 0
    assert capsys.readouterr().out.count("report: ") == 1
    (folder / "summary.json").write_text("{")
    assert main(["report"]) == 2
    assert "summary.json: not JSON" in capsys.readouterr().err


def test_compiled_programs_are_kept_where_the_variable_says(place, monkeypatch):
    before = (
        jax.config.jax_compilation_cache_dir,
        jax.config.jax_persistent_cache_min_compile_time_secs,
    )
    monkeypatch.setenv("REWARDJAX_CACHE", str(place / "cache"))
    try:
        assert main(["run", "toy", "--quiet"]) == 0
        assert jax.config.jax_compilation_cache_dir == str(place / "cache")
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def test_help_does_not_wait_for_jax():
    code = (
        "import sys; from rewardjax.cli import main; main(['--help']); print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert done.stdout.endswith("False\n")
    assert "run | list | report" in done.stdout


def test_bars_show_stage_and_metrics(capsys):
    console = Console(force_terminal=True, width=120)
    with progress.Bars(2, console) as bars:
        bars.progress("dpo/seed_0", 3, 10, {"loss": 0.25})
        bars._live.refresh()
        bars.warn("dpo/seed_0", "careful [x]")
        bars.finished("dpo/seed_0", {"score": 1.0})
        bars._live.refresh()
    out = capsys.readouterr().out
    for text in ("dpo/seed_0", "3/10", "loss 0.25", "warning: dpo/seed_0: careful [x]", "1/2"):
        assert text in out


def test_no_bars_where_nobody_looks(capsys):
    assert isinstance(progress.observer(1, quiet=False), progress.Lines)
    progress.Lines().warn("dpo", "careful")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: dpo: careful\n")
