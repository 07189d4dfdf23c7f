"""Run folders in an object store: the same files as in a folder, through `etils.epath`."""

import dataclasses
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from rewardjax.catalogue import Entry
from rewardjax.cli import main
from rewardjax.experiment import Arm, Experiment, Paper
from rewardjax.paths import path_of
from rewardjax.report import write_report
from rewardjax.runner import run
from rewardjax.training import checkpoint
from rewardjax.training.run import Run, Silent


class Bucket(MemoryFileSystem):
    """`gs://` in memory. As in a bucket nothing is appended to or renamed, and folders need not exist."""

    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))

    def open(self, path, mode="rb", **options):
        assert "a" not in mode
        return super().open(path, mode, **options)

    def mv(self, *paths, **options):
        raise NotImplementedError


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setenv("EPATH_USE_TF", "0")
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    Bucket.store.clear()
    return path_of("gs://bucket/runs")


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 4


def experiment(cut_off=()):
    """Logs, samples and a picture; the first run of the seeds in `cut_off` is interrupted."""
    cut = list(cut_off)

    def build(config):
        def run_seed(run, shared):
            stage = run.stage("policy")
            for step in range(config.steps):
                stage.log(step, {"reward": step + run.seed / 2})
                stage.samples(step, [{"text": "\u2028é"}])
                if step == 2 and run.seed in cut:
                    cut.remove(run.seed)
                    raise KeyboardInterrupt
            stage.picture("field", np.zeros((2, 2)))
            run.warn("a warning")
            return {"reward": stage.history("reward")[-1]}

        return run_seed

    paper = Paper(title="Toy", arxiv="0000.00000")
    return Experiment(paper=paper, arms={"a": Arm(build)}, scales={"mini": Config()}, claims=[])


def start(workdir, tmp_path, toy):
    entry = Entry("preferences", "toy", tmp_path / "toy.py")
    return run(toy, entry, Config(), "mini", ["a"], range(2), workdir, Silent())


def test_a_run_in_a_bucket_writes_what_a_run_in_a_folder_does(bucket, tmp_path):
    local = tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt):
        start(bucket, tmp_path, experiment(cut_off=[1]))
    assert len((bucket / "toy/mini/a/seed_1/policy/metrics.jsonl").read_text().splitlines()) == 3
    found = start(bucket, tmp_path, experiment())
    expected = start(local, tmp_path, experiment())
    assert found["arms"] == expected["arms"]
    seeds = [f"toy/mini/a/seed_{seed}" for seed in range(2)]
    files = ["policy/metrics.jsonl", "policy/samples.jsonl", "policy/pictures/field.png"]
    for name in (f"{seed}/{file}" for seed in seeds for file in (*files, "warnings.log")):
        assert (bucket / name).read_bytes() == (local / name).read_bytes(), name
    folder = bucket / "toy" / "mini"
    page = write_report(folder)
    assert isinstance(page, epath.Path)
    assert "pictures/field.png" in (folder / "report.md").read_text()
    assert "data:image/png" in page.read_text()
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "environment.json", "summary.json", "report.md", "report.html", "a")
    }
    assert not list((bucket / seeds[0] / "policy").glob("events*"))


def test_a_resumed_run_drops_rows_in_a_bucket_too(bucket):
    folder = bucket / "resumed"
    with Run(folder) as handle:
        for step in range(5):
            handle.log(step, {"x": step})
    with Run(folder) as handle:
        handle.rewind(2)
        handle.log(3, {"x": 30})
        np.testing.assert_array_equal(handle.history("x"), [0, 1, 2, 30])


def test_a_bucket_is_reported_from_the_command_line(bucket, tmp_path, capsys):
    start(bucket, tmp_path, experiment())
    assert main(["report", "gs://bucket/runs"]) == 0
    assert "gs://bucket/runs/toy/mini/report.html" in capsys.readouterr().out
    assert main(["report", "gs://bucket/none"]) == 2
    assert "gs://bucket/none: no such folder of runs" in capsys.readouterr().err


def test_checkpoints_are_given_the_address(bucket, monkeypatch):
    class Manager:
        def __init__(self, directory, options):
            self.directory = directory

        def close(self):
            pass

    monkeypatch.setattr(checkpoint.ocp, "CheckpointManager", Manager)
    with checkpoint.Checkpoints(bucket / "checkpoints") as checkpoints:
        assert str(checkpoints._manager.directory) == "gs://bucket/runs/checkpoints"
        assert isinstance(checkpoints._manager.directory, epath.Path)


def test_an_address_that_nothing_reads_is_refused(capsys):
    assert main(["report", "ftp://host/runs"]) == 2
    assert "expected a folder or an address in gs://, s3:// or az://" in capsys.readouterr().err


def test_a_missing_driver_is_named(capsys, monkeypatch):
    monkeypatch.setenv("EPATH_USE_TF", "0")

    def missing(self):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(epath.gpath.PosixGPath, "exists", missing)
    assert main(["report", "gs://bucket/runs"]) == 2
    assert "install gcsfs" in capsys.readouterr().err
