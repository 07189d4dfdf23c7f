"""SIGTERM, and two processes that share a mesh: what they compute, save and resume."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from rewardjax.cli import main
from rewardjax.recipes.supervised import Supervised
from rewardjax.training.run import Run
from rewardjax.training.sharding import MeshConfig, make_mesh, rows_on

ROOT = Path(__file__).parents[1]

# Waits for the test where it is asked to: NAME in the folder of markers makes it write NAME.there and sleep.
EXPERIMENT = '''
"""A small regression, trained on a mesh."""

import dataclasses
import os
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rewardjax.data.sources import RecordSource
from rewardjax.experiment import Arm, Experiment, Paper
from rewardjax.losses import Loss
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.statistics import Mean
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

@dataclasses.dataclass(frozen=True)
class Config:
    training: SupervisedConfig = SupervisedConfig(
        batch_size=8,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loop=LoopConfig(steps=20, steps_per_call=1, checkpoint_every=5),
    )


def wait_at(name):
    marker = Path(os.environ.get("MARKERS", "nowhere")) / name
    if marker.exists():
        marker.with_suffix(".there").touch()
        time.sleep(30)


class Waiting(RecordSource):
    """The data in batches of 8. In each process's READ it keeps how many records were made into rows."""

    def __init__(self, seed):
        x = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
        super().__init__(x, self.make, 8, seed)
        self.made = 0

    def make(self, records):
        self.made += len(records)
        if "READ" in os.environ:
            Path(os.environ["READ"]).write_text(str(self.made))
        x = np.stack(records)
        return {"x": x, "y": np.sin(x[:, 0] + x[:, 1])}

    def next_rows(self, rows):
        wait_at(f"step_{self.state()['step']}")
        # A moment in which a signal that has been sent arrives.
        time.sleep(float(os.environ.get("SLOW", "0")))
        return super().next_rows(rows)


def init(key):
    keys = jax.random.split(key)
    return {
        "first": nn.LogicallyPartitioned(
            jax.random.normal(keys[0], (16, 32)) / 4, ("embed", "mlp")
        ),
        "second": nn.LogicallyPartitioned(jax.random.normal(keys[1], (32,)) / 6, ("mlp",)),
    }


def squared_error(params, batch, frozen):
    predicted = jnp.tanh(batch["x"] @ params["first"]) @ params["second"]
    return Loss({"error": Mean.of((predicted - batch["y"]) ** 2)}, {})


def program(config):
    return Supervised(config.training, init=init, loss=squared_error)


def train(config):
    made = program(config)

    def run_seed(run, shared):
        made.run(run, source=Waiting(run.seed))
        return {"loss": run.history("loss")[-1]}

    return run_seed


EXPERIMENT = Experiment(
    paper=Paper(title="A toy", arxiv="0000.00000"),
    arms={"rm": Arm(train)},
    scales={"mini": Config()},
    claims=[],
    first_seeds=1,
)
'''


def mesh_of(**axes):
    return [word for name in axes for word in ("--set", f"training.mesh.{name}={axes[name]}")]


MESH = mesh_of(data=2, fsdp=4)
SEED = Path("toy", "mini", "rm", "seed_0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "experiments" / "preferences").mkdir(parents=True)
    (folder / "experiments" / "preferences" / "toy.py").write_text(EXPERIMENT)
    return folder


def start(place, workdir, *words, **variables):
    """A run of the experiment in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "REWARDJAX_CACHE": str(jax.config.jax_compilation_cache_dir),
        "MARKERS": str(workdir),
        **variables,
    }
    workdir.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "rewardjax.cli", "run", "toy", "--workdir", str(workdir), *words],
        cwd=place,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def end(process, expected=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == expected, err
    return out, err


def until(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def here(place):
    """Runs the experiment in the tests' own process, which has eight devices; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("REWARDJAX_CACHE", str(jax.config.jax_compilation_cache_dir))
        yield lambda workdir, *words: main(["run", "toy", "--workdir", str(workdir), *words])


def logged(workdir):
    return (workdir / SEED / "metrics.jsonl").read_text()


def losses_of(workdir):
    return np.array([json.loads(line)["loss"] for line in logged(workdir).splitlines()])


def pair(place, workdir, mesh=MESH, **variables):
    """Two processes with four virtual devices each; each tells how many records it read."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = {
        "REWARDJAX_COORDINATOR": f"localhost:{port}",
        "REWARDJAX_PROCESSES": "2",
        "REWARDJAX_JOIN_SECONDS": "60",
        "JAX_NUM_CPU_DEVICES": "4",
        **variables,
    }
    own = [{"REWARDJAX_PROCESS": str(i), "READ": f"{workdir}/read_{i}"} for i in range(2)]
    return [start(place, workdir, *mesh, **variables, **common) for variables in own]


def records_read(workdir):
    return [int((workdir / f"read_{i}").read_text()) for i in range(2)]


@pytest.fixture(scope="module")
def one_process(place, here):
    """The result on eight devices of one process."""
    assert here(place / "one", *MESH) == 0
    return place / "one"


@pytest.fixture(scope="module")
def two_processes(place):
    """The undisturbed result on four devices of each of two processes."""
    first, second = pair(place, place / "two")
    out, _ = end(first)
    assert "report:" in out
    assert "report:" not in end(second)[0]
    return place / "two"


def test_sigterm_saves_exits_with_143_and_the_run_resumes_to_the_same(place, here, one_process):
    workdir = place / "told"
    running = start(place, workdir, *MESH, JAX_NUM_CPU_DEVICES="8", SLOW="0.1")
    # Step 5 has been saved by the cadence; whatever comes after it is saved by the signal.
    until((workdir / SEED / "checkpoints" / "5").exists, running)
    running.send_signal(signal.SIGTERM)
    _, err = end(running, 143)
    assert "told to stop: what was done is saved" in err
    done = len(logged(workdir).splitlines())
    assert done < 20
    assert (workdir / SEED / "checkpoints" / str(done)).is_dir()
    assert here(workdir, *MESH) == 0
    assert logged(workdir) == logged(one_process)


def test_sigterm_outside_the_loop_exits_with_143_too(place, here, capsys):
    def terminate(program, run, **arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supervised, "run", terminate)
        assert here(place / "early") == 143
    assert "told to stop" in capsys.readouterr().err


def test_two_processes_train_as_one(one_process, two_processes):
    assert len(losses_of(one_process)) == 20
    np.testing.assert_allclose(losses_of(two_processes), losses_of(one_process), rtol=1e-5)
    # Only one of them wrote: no line is there twice.
    assert len((two_processes / SEED / "perf.jsonl").read_text().splitlines()) == 20
    # Of the 20 batches of 8 each process read its own rows.
    assert records_read(two_processes) == [80, 80]


def test_processes_that_share_all_rows_read_them_all(place, one_process):
    workdir = place / "tensor"
    for process in pair(place, workdir, mesh_of(tensor=8)):
        end(process)
    np.testing.assert_allclose(losses_of(workdir), losses_of(one_process), rtol=1e-5)
    assert records_read(workdir) == [160, 160]


def test_a_killed_process_and_both_restarted(place, two_processes):
    workdir = place / "killed"
    workdir.mkdir()
    (workdir / "step_12").touch()
    first, second = pair(place, workdir)
    until((workdir / "step_12.there").exists, second)
    until((workdir / SEED / "checkpoints" / "10").exists, first)
    second.kill()
    first.kill()  # as its scheduler does when a peer is gone
    end(second, -signal.SIGKILL)
    end(first, -signal.SIGKILL)
    (workdir / "step_12").unlink()
    for process in pair(place, workdir):
        end(process)
    assert logged(workdir) == logged(two_processes)


def test_if_one_process_is_told_both_stop_and_one_alone_goes_on(
    place, here, one_process, two_processes
):
    workdir = place / "one_told"
    first, second = pair(place, workdir, SLOW="0.1")
    until((workdir / SEED / "checkpoints" / "5").exists, second)
    second.send_signal(signal.SIGTERM)
    end(second, 143)
    end(first, 143)
    done = len(logged(workdir).splitlines())
    assert done < 20
    assert (workdir / SEED / "checkpoints" / str(done)).is_dir()
    whole = logged(two_processes).splitlines()
    assert logged(workdir).splitlines() == whole[:done]
    # The place in the data does not depend on how many read it.
    assert here(workdir, *MESH) == 0
    np.testing.assert_allclose(losses_of(workdir), losses_of(one_process), rtol=1e-5)


def test_a_checkpoint_of_two_processes_restores_on_other_meshes(place, one_process, two_processes):
    from rewardjax import catalogue
    from rewardjax.overrides import override

    entry = catalogue.Entry("preferences", "toy", place / "experiments" / "preferences" / "toy.py")
    experiment = catalogue.load_entry(entry)
    module = sys.modules["experiments.preferences.toy"]

    def restored(source, data, fsdp, tensor):
        folder = place / f"{source.name}_on_{data}{fsdp}{tensor}"
        shutil.copytree(source / SEED, folder)
        mesh = [
            f"training.mesh.{name}={size}"
            for name, size in zip(("data", "fsdp", "tensor"), (data, fsdp, tensor), strict=True)
        ]
        made = module.program(override(experiment.scales["mini"], mesh))
        with Run(folder, 0) as run:
            state = made.run(run, source=module.Waiting(0))
        assert int(state.step) == 20
        return jax.device_get(state)

    expected = restored(two_processes, 2, 4, 1)
    chex.assert_trees_all_equal(restored(two_processes, 2, 2, 2), expected)
    chex.assert_trees_all_equal(restored(two_processes, 1, 1, 1), expected)
    chex.assert_trees_all_close(restored(one_process, 1, 1, 1), expected, atol=2e-5)


def test_rows_on_some_of_a_meshs_devices():
    devices = jax.devices()
    over_rows, mixed = make_mesh(MeshConfig(2, 4, 1)), make_mesh(MeshConfig(2, 1, 4))
    assert rows_on(over_rows, 16, devices[:4]).tolist() == list(range(8))
    assert rows_on(over_rows, 16, devices[1::4]).tolist() == [2, 3, 10, 11]
    assert rows_on(mixed, 16, devices[2:4]).tolist() == list(range(8))
    assert rows_on(mixed, 16, devices[2:6]).tolist() == list(range(16))
    assert rows_on(make_mesh(MeshConfig(1, 1, 8)), 3, devices[:4]).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="12"):
        rows_on(over_rows, 12, devices)


def test_a_mesh_that_leaves_out_devices_of_a_process(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="2 processes have 8, and the mesh has to hold all"):
        make_mesh(MeshConfig(data=2, fsdp=2))
