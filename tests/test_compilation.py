"""Ahead-of-time compilation: the recipes' programs on eight CPU devices, and what does not fit."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rewardjax import catalogue, cli
from rewardjax.compilation import chips, program
from rewardjax.compilation.chips import CHIPS, Chip, CompileError, Topology
from rewardjax.compilation.command import mesh_for
from rewardjax.compilation.program import Workload, check_mesh, compile_workload, fit_rows, table
from rewardjax.models.flow import FlowModel, MLPConfig
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.partitioning import RULES
from rewardjax.recipes import flow_workloads, rollout_workloads, workloads
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.text_reward_model import TextConfig
from rewardjax.sampling.flow import FlowPolicy
from rewardjax.tpu_slices import GENERATIONS, Slice
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig, make_mesh

TINY = TransformerConfig(
    vocab=32,
    layers=2,
    width=16,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=32,
    context=32,
    scan=True,
)
TINY = dataclasses.replace(TINY, remat="full", attention_chunk=8, logit_chunk=4)
MODEL, SCORER = LanguageModel(TINY), RewardModel(TINY)
RL = PolicyGradientConfig(prompts=8, minibatches=2, micro_batches=2, rollout_cuts=2, batch_cuts=2)
ROLLOUTS = rollout_workloads.Rollouts(
    MODEL, RL, 2, prompt=8, response=8, critic=OptimizerConfig(), reward_model=True
)
FIT = SupervisedConfig(8, micro_batches=2)
FLOW = FlowModel(MLPConfig(conditions=2, width=8))
PROGRAMS = [
    *rollout_workloads.with_process_rewards(ROLLOUTS, OptimizerConfig(), 0.05),
    workloads.imitation(MODEL, FIT, 16),
    workloads.reward_model_training(SCORER, FIT, 16),
    workloads.preference_training(MODEL, FIT, 16),
    workloads.value_training(SCORER, FIT, 16),
    *workloads.verifier_training(TextConfig(buckets=(16,), model=TINY, pretraining=FIT, fit=FIT)),
    flow_workloads.velocities(FLOW, 8, 10),
    *flow_workloads.denoising(FlowPolicy(FLOW.velocity, FLOW.config.event, 4, 3), FLOW, RL, 8),
]

TRAINED = (
    "update",
    "sft",
    "reward_model",
    "dpo",
    "critic",
    "process_reward_model",
    "verifier",
    "value",
)


def cpu_slice():
    """Eight virtual devices with round figures."""
    return Topology("cpu", jax.devices()[:8], Chip(1e9, 1e9, 1e6, 1e5))


def test_every_generation_that_can_be_launched_has_figures():
    assert CHIPS.keys() == GENERATIONS.keys()


def test_meshes():
    config = PolicyGradientConfig(mesh=MeshConfig(data=2, fsdp=4, tensor=2))
    assert mesh_for(config, 32, None) == MeshConfig(2, 8, 2)
    assert mesh_for(config, 8, "tensor=4") == MeshConfig(1, 2, 4)
    assert mesh_for(config, 8, "sequence=4,tensor=2") == MeshConfig(tensor=2, sequence=4)
    assert mesh_for(PolicyGradientConfig(), 8, None) == MeshConfig(fsdp=8)
    for wanted in ("tensor=3", "fsdp=4,tensor=4"):
        with pytest.raises(CompileError, match="does not divide the 8 devices"):
            mesh_for(config, 8, wanted)
    with pytest.raises(
        CompileError, match="expected such as data=1,fsdp=4,tensor=4, found 'rows=2'"
    ):
        mesh_for(config, 8, "rows=2")


@pytest.mark.parametrize("workload", PROGRAMS, ids=lambda it: it.name)
def test_programs_compile_for_a_mesh(workload):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    check_mesh(workload, mesh.shape, RULES)
    report = compile_workload(workload, mesh, cpu_slice())
    assert report.fits
    assert report.flops > 0
    assert report.arguments > 0
    assert report.seconds >= report.compute_seconds == report.flops / 1e9
    if workload.name in TRAINED:
        assert report.interconnect_seconds > 0


def test_a_report_by_hand():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    (decode,) = (it for it in ROLLOUTS.workloads() if it.name == "decode")
    assert (decode.rows, decode.calls) == (8, 2 * 1)
    report = compile_workload(decode, mesh, cpu_slice())
    tensor, rows, slots = 2, 8 // 4, 16
    layer = 16 * (32 + 16 + 16) + 32 * 16 + 3 * 16 * 32
    weights = (2 * layer / tensor + 2 * 2 * 16 + 16 + 32 * 16 / tensor) * 4
    cache = 2 * 2 * rows * 2 / tensor * slots * 8 * 4 + rows * slots * 4 + 4
    assert report.arguments == pytest.approx(weights + cache + 2 * rows * 4, abs=64)
    rows_text = table([report, dataclasses.replace(report, largest=("too much",))])
    assert rows_text.count("| decode | 8 |") == 2
    assert "does not fit" in rows_text
    assert report.as_json()["bound"] in ("memory", "interconnect")


def test_what_a_step_holds_beside_a_program_counts():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))

    def rows(*shape):
        return jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        )

    def double(mesh, count):
        return program.Program(lambda x, y: 2 * x + y, (rows(80), rows(80)), kept=(0,))

    workload = Workload("double", 8, double)
    (held,) = rollout_workloads.in_one_step(
        [workload], lambda mesh: {"x": rows(80)}, lambda mesh: {"z": rows(800), "none": ()}
    )
    alone, beside = (compile_workload(it, mesh, cpu_slice()) for it in (workload, held))
    assert (alone.beside, beside.beside) == (0, 800 * 4 / 8)
    assert alone.arguments == beside.arguments == 2 * 80 * 4 / 8
    assert alone.fits
    assert beside.fits
    own = beside.arguments + beside.outputs + beside.temporaries
    chip = dataclasses.replace(cpu_slice().chip, memory=(own + 390) / program.USABLE)
    full = compile_workload(held, mesh, Topology("cpu", jax.devices()[:8], chip))
    assert not full.fits
    assert "of its own, and the step holds" in full.largest[0]
    assert [part.split(": ")[1] for part in full.largest[1:]] == ["x", "z", "none"]
    assert not full.as_json()["fits"]


def test_what_rollouts_hold():
    mesh = make_mesh(MeshConfig(fsdp=8))
    named = {
        it.name: it
        for it in rollout_workloads.with_process_rewards(ROLLOUTS, OptimizerConfig(), 0.05)
    }
    held = named["decode"].held(mesh)
    assert list(held) == ["policy", "reference", "reward model", "critic", "process reward model"]
    bare = dataclasses.replace(ROLLOUTS, critic=None, reward_model=False, reference=False)
    assert [it.name for it in bare.workloads()] == ["rollout", "prefill", "decode", "update"]
    assert list(bare.workloads()[0].held(mesh)) == ["policy"]
    guided = rollout_workloads.guided_decoding(MODEL, RL, 2, 8, 8)
    rows = {"rollout": 4, "prefill": 4, "decode": 8, "reward": 8}
    assert {it.name: it.rows for it in guided} == rows
    assert list(guided[0].held(mesh)) == ["policy", "reward model"]


def test_what_a_mesh_does_not_divide_is_named():
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=4))
    with pytest.raises(
        CompileError, match=r"decode: expected kv_heads to be a multiple of 4 .*found 2"
    ):
        check_mesh(ROLLOUTS.workloads()[2], mesh.shape, RULES)
    odd = dataclasses.replace(ROLLOUTS.workloads()[2], rows=3, sizes={})
    with pytest.raises(CompileError, match=r"expected rows to be a multiple of 2 .*found 3"):
        check_mesh(odd, mesh.shape, RULES)


def test_a_context_that_is_too_long_is_named():
    with pytest.raises(ValueError, match="33 tokens is longer than the model's context=32"):
        dataclasses.replace(ROLLOUTS, response=25).workloads()


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (5, 4), (6, 6), (100, 96)])
def test_the_most_rows_that_fit(monkeypatch, most, expected):
    tried = []

    def fake(workload, mesh, where):
        tried.append(workload.rows)
        largest = () if workload.rows <= 4 * most else ("too much",)
        return program.Report(workload.name, workload.rows, 1, 1.0, 1.0, 0.0, largest=largest)

    monkeypatch.setattr(program, "compile_workload", fake)
    workload = Workload("update", 8, lambda mesh, rows: None)
    assert fit_rows(workload, make_mesh(MeshConfig(fsdp=4)), cpu_slice(), 4).rows == 4 * expected
    assert len(tried) <= 10


def test_nothing_fits(monkeypatch):
    def fake(workload, mesh, where):
        return program.Report("update", workload.rows, 1, 1.0, 1.0, 0.0, largest=("params: 3 GiB",))

    monkeypatch.setattr(program, "compile_workload", fake)
    workload = Workload("update", 4, lambda mesh, rows: None)
    with pytest.raises(CompileError, match=r"not even 4 rows fit; .*\n  params: 3 GiB"):
        fit_rows(workload, make_mesh(MeshConfig(fsdp=4)), cpu_slice(), 4)


def test_a_lack_of_memory_names_the_largest_arguments():
    shapes = (
        {"small": jax.ShapeDtypeStruct((2,), jnp.float32)},
        jax.ShapeDtypeStruct((2**28,), jnp.float32),
    )
    found = program.largest_buffers("RESOURCE_EXHAUSTED: out\nmore", program.Program(max, shapes))
    assert found[0] == "RESOURCE_EXHAUSTED: out"
    assert found[1] == "1.00 GiB a device: argument [1] float32(268435456,)"


class Lowered:
    """A program whose text cannot be read until its scatters are elsewhere."""

    def __init__(self, message):
        self.message, self.asked = message, []

    def compile(self, compiler_options=None):
        self.asked.append(compiler_options)
        return self

    def as_text(self):
        if self.asked[-1] is None:
            raise program.JaxRuntimeError(self.message)
        return "the text"


def test_a_text_that_cannot_be_read_is_compiled_without_sparse_cores():
    lowered = Lowered("INTERNAL: async-update instruction should have 1 operands but sees 4")
    assert program.readable(lowered) == (lowered, "the text")
    assert lowered.asked == [None, program.ON_TENSOR_CORE]
    with pytest.raises(program.JaxRuntimeError, match="of another kind"):
        program.readable(Lowered("INTERNAL: of another kind"))


def all_experiments():
    return [
        pytest.param(entry, found, id=entry.slug)
        for entry, found in catalogue.load_all(catalogue.experiments_folder())
        if not isinstance(found, Exception) and found.workloads is not None
    ]


@pytest.mark.parametrize(("entry", "experiment"), all_experiments())
def test_every_paper_scale_suits_its_slice(entry, experiment):
    config = experiment.scales["paper"]
    wanted = mesh_for(config, Slice.parse(experiment.topology).chips, None)
    found = experiment.workloads(config)
    assert len({it.name for it in found}) == len(found) > 0
    for workload in found:
        check_mesh(workload, dataclasses.asdict(wanted), RULES)


def test_without_the_compiler_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["compile", "tempo"]) == 2
    assert "pip install -e '.[tpu-compile]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["heron"], "heron declares no device programs"),
        ([], "expected an experiment, or --all"),
        (["tempo", "--topology", "v9:2x2"], "found 'v9'"),
        (["tempo", "--scale", "huge"], "expected one of mini, smoke, paper, found 'huge'"),
    ],
)
def test_mistakes_are_told_at_once(monkeypatch, capsys, words, said):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert cli.main(["compile", *words]) == 2
    assert said in capsys.readouterr().err


HAS_COMPILER = "TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu") is not None


@pytest.mark.skipif(not HAS_COMPILER, reason="needs the TPU compiler: rewardjax[tpu-compile]")
def test_the_tpu_compiler():
    words = ["compile", "tempo", "--scale", "smoke", "--topology", "v5e:2x2", "--json"]
    words += ["--set", "rl.prompts=8", "--set", "rl.minibatches=1", "--programs", "decode"]
    command = [sys.executable, "-m", "rewardjax.cli", *words, "--set", "model.context=2048"]
    # The tests' own flags are of the CPU compiler; the TPU's knows others.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    found = subprocess.run(command, capture_output=True, text=True, env=env)
    assert found.returncode == 0, found.stderr
    (result,) = json.loads(found.stdout)
    assert result["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1, "sequence": 1}
    assert result["programs"][0]["fits"]
    assert result["programs"][0]["temporaries"] >= 0
