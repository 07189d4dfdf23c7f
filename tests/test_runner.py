"""The run's handle and the runner, on experiments made of plain Python numbers."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from rewardjax import runner
from rewardjax.catalogue import Entry
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.runner import ConfigMismatch, RunFolderError, StorageError, environment, run
from rewardjax.training.run import Run, Silent, append_text, write_atomic


class Watcher(Silent):
    def __init__(self):
        self.warnings, self.done = [], []

    def warn(self, label, message):
        self.warnings.append((label, message))

    def finished(self, label, metrics):
        self.done.append(label)


@dataclasses.dataclass(frozen=True)
class Config:
    bonus: float = 1.0
    sizes: tuple[int, ...] = (1, 2)


def experiment(calls, *, cut_off=None, result=None):
    """Two arms: `plain` reports its seed, `better` the bonus more; `calls` records what ran.

    `cut_off` names the (arm, seed) that raises KeyboardInterrupt at its first attempt.
    """

    def prepare(config):
        def shared(run):
            calls.append(f"prepare {run.seed}")
            return 100.0 * run.seed

        return shared

    def arm(name, gain):
        def build(config):
            calls.append(f"build {name}")

            def run_seed(run, shared):
                calls.append(f"{name} {run.seed}")
                run.log(0, {"loss": 0.5})
                if (name, run.seed) == cut_off and calls.count(f"{name} {run.seed}") == 1:
                    raise KeyboardInterrupt
                default = {"score": shared + run.seed + gain * config.bonus, "constant": 3}
                return default if result is None else result

            return run_seed

        return Arm(build)

    return Experiment(
        paper=Paper(title="Toy", arxiv="0000.00000"),
        arms={"plain": arm("plain", 0), "better": arm("better", 1)},
        scales={"mini": Config()},
        claims=[Claim("score", "better", ">", "plain")],
        prepare=prepare,
    )


@pytest.fixture
def entry(tmp_path):
    path = tmp_path / "experiments" / "preferences" / "toy.py"
    return Entry("preferences", "toy", path)


def start(entry, tmp_path, toy, *, config=None, arms=("plain", "better"), seeds=2, **keywords):
    watcher = keywords.pop("observer", None) or Watcher()
    summary = run(
        toy, entry, config or Config(), "mini", arms, range(seeds), tmp_path, watcher, **keywords
    )
    return summary, watcher


def test_seeds_are_the_outer_loop_and_an_arm_is_built_once(entry, tmp_path):
    calls = []
    summary, watcher = start(entry, tmp_path, experiment(calls))
    assert calls == [
        *("prepare 0", "build plain", "plain 0", "build better", "better 0"),
        *("prepare 1", "plain 1", "better 1"),
    ]
    assert watcher.done == ["plain/seed_0", "better/seed_0", "plain/seed_1", "better/seed_1"]
    assert summary["arms"]["plain"]["score"]["values"] == [0.0, 101.0]
    assert summary["arms"]["better"]["score"]["values"] == [1.0, 102.0]
    assert summary["claims"][0]["difference"] == 1.0
    folder = tmp_path / "toy" / "mini"
    assert json.loads((folder / "summary.json").read_text()) == summary
    for name in ("config.json", "environment.json", "report.md", "report.html"):
        assert (folder / name).is_file()
    assert json.loads((folder / "better" / "seed_1" / "result.json").read_text())["metrics"] == {
        "score": 102.0,
        "constant": 3.0,
    }


@pytest.mark.parametrize(("most", "compilations"), [(10**9, 1), (0, 3)])
def test_many_compiled_programs_are_dropped(entry, tmp_path, monkeypatch, most, compilations):
    monkeypatch.setattr(runner, "MOST_MAPS", most)
    traced = []

    def build(config):
        @jax.jit
        def double(x):
            traced.append(x)
            return 2 * x

        return lambda run, shared: {"score": double(float(run.seed))}

    toy = dataclasses.replace(experiment([]), arms={"plain": Arm(build)}, claims=[], prepare=None)
    summary, _ = start(entry, tmp_path, toy, arms=("plain",), seeds=3)
    assert summary["arms"]["plain"]["score"]["values"] == [0.0, 2.0, 4.0]
    assert len(traced) == compilations


def test_what_is_finished_is_skipped_and_later_arms_join(entry, tmp_path):
    calls = []
    toy = experiment(calls)
    first, _ = start(entry, tmp_path, toy, arms=("plain",))
    assert set(first["arms"]) == {"plain"}
    calls.clear()
    second, watcher = start(entry, tmp_path, toy, arms=("better",))
    assert calls == ["prepare 0", "build better", "better 0", "prepare 1", "better 1"]
    assert set(second["arms"]) == {"plain", "better"}
    calls.clear()
    third, watcher = start(entry, tmp_path, toy)
    assert calls == []
    assert len(watcher.done) == 4
    assert third["arms"] == second["arms"]


def test_an_interrupted_run_goes_on_where_it_stopped(entry, tmp_path):
    calls = []
    toy = experiment(calls, cut_off=("better", 0))
    with pytest.raises(KeyboardInterrupt):
        start(entry, tmp_path, toy)
    folder = tmp_path / "toy" / "mini"
    assert not (folder / "better" / "seed_0" / "result.json").exists()
    assert not (folder / "summary.json").exists()
    # What the attempt logged is on disk, and is not there twice after the second.
    log = folder / "better" / "seed_0" / "metrics.jsonl"
    assert log.read_text() == '{"step": 0, "loss": 0.5}\n'
    before = len(calls)
    summary, _ = start(entry, tmp_path, toy)
    assert calls[before : before + 3] == ["prepare 0", "build better", "better 0"]
    assert "plain 0" not in calls[before:]
    assert log.read_text() == '{"step": 0, "loss": 0.5}\n'
    assert summary["arms"]["better"]["score"]["values"] == [1.0, 102.0]


def test_another_configuration_is_refused_and_nothing_changes(entry, tmp_path):
    toy = experiment([])
    start(entry, tmp_path, toy)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigMismatch, match=r"bonus: 1\.0 there, 2\.0 here"):
        start(entry, tmp_path, toy, config=Config(bonus=2.0))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_the_same_slug_of_another_family_is_refused(entry, tmp_path):
    start(entry, tmp_path, experiment([]))
    other = Entry("reasoning", "toy", entry.path)
    with pytest.raises(ConfigMismatch, match="'preferences/toy' there, 'reasoning/toy' here"):
        start(other, tmp_path, experiment([]))


def test_broken_files_in_the_folder_are_named(entry, tmp_path):
    toy = experiment([])
    start(entry, tmp_path, toy)
    result = tmp_path / "toy" / "mini" / "plain" / "seed_0" / "result.json"
    result.write_text('{"seconds": 1}')
    with pytest.raises(RunFolderError, match=r"seed_0/result\.json: expected .*'metrics'"):
        start(entry, tmp_path, toy)
    (tmp_path / "toy" / "mini" / "config.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"config\.json: not JSON"):
        start(entry, tmp_path, toy)


def test_a_result_that_is_not_finite_is_null_and_warned_of(entry, tmp_path):
    toy = experiment([], result={"score": float("nan"), "other": jax.numpy.float32(0.5)})
    summary, watcher = start(entry, tmp_path, toy, seeds=1)
    assert summary["arms"]["plain"]["score"]["values"] == [None]
    assert summary["arms"]["plain"]["other"]["values"] == [0.5]
    assert ("plain/seed_0", "the result 'score' is not finite") in watcher.warnings


@pytest.mark.parametrize("result", [3.0, {"score": "high"}, {"score": [1.0, 2.0]}])
def test_a_result_that_is_no_mapping_of_numbers_names_the_arm(entry, tmp_path, result):
    with pytest.raises(TypeError) as caught:
        start(entry, tmp_path, experiment([], result=result))
    assert "in arm 'plain', seed 0" in caught.value.__notes__[0]


def test_doubtful_results_are_warned_of(entry, tmp_path):
    _, watcher = start(entry, tmp_path, experiment([]), seeds=1)
    messages = [message for label, message in watcher.warnings if label == "toy"]
    assert any(message.startswith("constant never changed: it is 3.0") for message in messages)
    assert any("judged from one seed" in message for message in messages)
    assert not any(message.startswith("score") for message in messages)


def test_record_writes_beside_the_experiments_and_warns_of_few_seeds(entry, tmp_path):
    summary, watcher = start(entry, tmp_path / "runs", experiment([]), arms=("plain",), record=True)
    recorded = tmp_path / "results" / "preferences" / "toy.json"
    assert json.loads(recorded.read_text()) == summary
    messages = [message for _, message in watcher.warnings]
    assert "recorded 2 seeds; a verdict needs 5" in messages
    assert "recorded without the arms better" in messages


def test_a_full_disk_is_named(entry, tmp_path, monkeypatch):
    toy = experiment([])
    place = tmp_path / "toy" / "mini" / "plain" / "seed_0"
    place.mkdir(parents=True)
    (place / "warnings.log").symlink_to("/dev/full")

    def build(config):
        return lambda run, shared: run.warn("anything") or {"score": 1.0}

    full = dataclasses.replace(toy, arms={"plain": Arm(build)}, claims=[])
    with pytest.raises(StorageError, match=r"cannot write .*plain/seed_0/warnings\.log: No space"):
        start(entry, tmp_path, full, arms=("plain",))


def test_a_workdir_that_is_a_file_is_named(entry, tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match="runs"):
        start(entry, tmp_path / "runs", experiment([]))


def test_an_arm_cannot_take_the_shared_folder(entry, tmp_path):
    toy = dataclasses.replace(experiment([]), arms={"prepare": Arm(lambda config: None)}, claims=[])
    with pytest.raises(ValueError, match="prepare"):
        start(entry, tmp_path, toy, arms=("prepare",))
    assert not (tmp_path / "toy").exists()


def test_environment_says_what_it_ran_on(tmp_path):
    surroundings = environment(tmp_path)
    assert surroundings["commit"] == ""
    assert surroundings["packages"]["jax"] == jax.__version__
    assert surroundings["hardware"]["devices"] == len(jax.devices())
    assert surroundings["hardware"]["cpu"]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_log_has_the_bytes_of_an_uninterrupted_one(tmp_path):
    def log(handle, steps):
        for step in steps:
            handle.log(step, {"loss": jax.numpy.float32(1 / (step + 1)), "count": step})
            handle.samples(step, [{"text": f"a\u2028{step}"}, {"text": "b"}])

    with Run(tmp_path / "whole", 0, "a") as handle:
        log(handle, range(6))
    with Run(tmp_path / "cut", 0, "a") as handle:
        log(handle, range(4))
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with Run(tmp_path / "cut", 0, "a") as handle:
        handle.rewind(1)
        log(handle, range(2, 6))
    for name in ("metrics.jsonl", "samples.jsonl"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "cut" / name).read_bytes() == whole
    assert rows(tmp_path / "whole" / "metrics.jsonl")[2] == {
        "step": 2,
        "loss": pytest.approx(1 / 3),
        "count": 2.0,
    }


def test_rewind_names_a_broken_line_that_is_not_the_last(tmp_path):
    handle = Run(tmp_path, 0, "a")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: expected an object"):
        handle.rewind(5)


def test_rewind_counts_what_is_still_buffered(tmp_path):
    with Run(tmp_path, 0, "a") as handle:
        for step in range(5):
            handle.log(step, {"x": step})
        handle.rewind(2)
        handle.log(3, {"x": 30})
    assert [row["x"] for row in rows(tmp_path / "metrics.jsonl")] == [0, 1, 2, 30]


def test_logged_rows_reach_the_disk_before_the_end(tmp_path):
    with Run(tmp_path, 0, "a") as handle:
        handle.log(0, {"x": 1})
        assert not (tmp_path / "metrics.jsonl").exists()
        handle.flush()
        assert len(rows(tmp_path / "metrics.jsonl")) == 1
        for step in range(1, 101):
            handle.log(step, {"x": 1})
        assert len(rows(tmp_path / "metrics.jsonl")) == 101


def test_a_value_that_is_not_finite_is_logged_as_null(tmp_path):
    watcher = Watcher()
    with Run(tmp_path, 0, "a", observer=watcher) as handle:
        handle.log(0, {"x": float("nan"), "y": 1.0})
        handle.log(1, {"x": float("inf"), "y": 1.0})
    assert rows(tmp_path / "metrics.jsonl")[0] == {"step": 0, "x": None, "y": 1.0}
    message = "x is not finite in some steps; it is logged as null"
    assert watcher.warnings == [("a/seed_0", message)]
    assert (tmp_path / "warnings.log").read_text() == message + "\n"


def test_tensorboard_events_hold_the_metrics(tmp_path):
    with Run(tmp_path, 0, "a") as handle:
        handle.log(0, {"a_metric_by_name": 1.0})
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"a_metric_by_name" in events.read_bytes()


def test_stages_have_their_own_folder_and_key(tmp_path):
    def data(key):
        return tuple(jax.random.key_data(key).tolist())

    run_a, run_b = Run(tmp_path / "a", 3, "a"), Run(tmp_path / "b", 3, "b")
    assert data(run_a.key) == data(run_b.key) == data(jax.random.key(3))
    sft, reward = run_a.stage("sft"), run_a.stage("reward")
    # The other order gives the same keys.
    assert data(run_b.stage("reward").key) == data(reward.key)
    assert len({data(run_a.key), data(sft.key), data(reward.key)}) == 3
    assert run_a.stage("sft") is sft
    assert sft.folder == tmp_path / "a" / "sft"
    assert sft.folder.is_dir()
    sft.log(0, {"x": 1})
    run_a.close()
    assert len(rows(tmp_path / "a" / "sft" / "metrics.jsonl")) == 1


def test_timings_stay_out_of_the_metrics(tmp_path):
    with Run(tmp_path, 0, "a") as handle:
        handle.perf(0, {"seconds": 0.25})
        handle.rewind(-1)
    assert rows(tmp_path / "perf.jsonl") == [{"step": 0, "seconds": 0.25}]
    assert not (tmp_path / "metrics.jsonl").exists()


def test_progress_and_samples_take_arrays(tmp_path):
    seen = []
    watcher = Watcher()
    watcher.progress = lambda *call: seen.append(call)
    with Run(tmp_path, 1, "a", observer=watcher) as handle:
        handle.progress(2, 5, {"x": jax.numpy.float32(1.5)})
        handle.samples(0, [{"tokens": jax.numpy.arange(3), "reward": jax.numpy.float32(1.0)}])
    assert seen == [("a/seed_1", 2, 5, {"x": 1.5})]
    assert rows(tmp_path / "samples.jsonl") == [{"step": 0, "tokens": [0, 1, 2], "reward": 1.0}]


def test_an_atomic_write_leaves_the_old_file_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomic(path, "old")
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full") as caught:
        write_atomic(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"


def test_a_failed_append_names_its_file():
    with pytest.raises(OSError, match="No space left") as caught:
        append_text(Path("/dev/full"), "x")
    assert caught.value.filename == "/dev/full"
