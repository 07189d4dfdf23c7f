"""The training step and loop: exact accumulation, sharding, resume, and stopping on NaN."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rewardjax import credit, losses, rewards
from rewardjax.data.batching import pack
from rewardjax.data.sources import ArraySource
from rewardjax.losses import Loss
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import language_modelling, reward_modelling
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig, scored
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.statistics import Mean
from rewardjax.tasks.arithmetic import Arithmetic
from rewardjax.training.loop import Loop, LoopConfig, NonFinite
from rewardjax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from rewardjax.training.run import Run
from rewardjax.training.sharding import MeshConfig
from rewardjax.training.state import TrainState, gradients

TASK = Arithmetic(max_steps=1)
CONFIG = TransformerConfig(
    vocab=24, layers=2, width=16, heads=4, kv_heads=2, head_dim=4, mlp_width=32, context=32
)
MODEL = LanguageModel(CONFIG)
SCORER = RewardModel(CONFIG)


def preferences(rows=16, time=9):
    key = jax.random.key(3)
    lengths = jax.random.randint(key, (rows, 2, 1), 3, time + 1)
    valid = np.asarray(jnp.arange(time) < lengths)
    tokens = np.asarray(jax.random.randint(key, (rows, 2, time), 0, 24))
    return {"tokens": tokens, "valid": valid, "mask": valid}


def bradley_terry(scores, batch):
    return losses.bradley_terry(scores[:, 0] - scores[:, 1])


def reward_program(mesh=None, steps=4, **loop):
    config = SupervisedConfig(
        batch_size=8,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loop=LoopConfig(steps=steps, steps_per_call=1, **loop),
        mesh=mesh or MeshConfig(),
    )
    return Supervised(config, init=SCORER.boxed_init, loss=reward_modelling(SCORER, bradley_terry))


def policy_program(mesh=None, rate=1e-2, epochs=1, **arguments):
    policy = LanguagePolicy(MODEL, max_new=6, stop=(TASK.eos,), group_size=4, prompt_columns=5)
    config = PolicyGradientConfig(
        prompts=8,
        epochs=epochs,
        minibatches=epochs,
        optimizer=OptimizerConfig(learning_rate=rate),
        loop=LoopConfig(steps=3, steps_per_call=1),
        mesh=mesh or MeshConfig(),
    )

    def reward(traj):
        return rewards.outcome(traj.lengths + 0.1 * jnp.sum(traj.tokens, axis=1), traj.mask)

    def advantages(rewards, traj):
        return credit.group_relative(rewards, traj, group_size=4)

    return PolicyGradient(
        config,
        init=MODEL.boxed_init,
        rollout=policy.rollout,
        loss=scored(policy.score, losses.policy_loss(surrogate=losses.clipped(0.2))),
        reward=arguments.pop("reward", reward),
        credit=arguments.pop("credit", advantages),
        prompts=TASK.prompts,
        **arguments,
    )


def test_accumulated_packed_and_whole_batches_agree():
    """8 rows at once, 4 x 2 accumulated, and packed into fewer rows: one loss, one gradient."""
    key = jax.random.key(0)
    params = jax.jit(MODEL.init)(key)
    lengths = np.array([3, 9, 4, 4, 5, 7, 2, 6])
    rows = [
        np.asarray(jax.random.randint(jax.random.fold_in(key, n), (n,), 1, 24)) for n in lengths
    ]
    tokens = np.stack([np.pad(r, (0, 9 - len(r))) for r in rows]).astype(np.int32)
    valid = np.arange(9) < lengths[:, None]
    # The first token of a document has nothing before it: it is not scored.
    whole = {"tokens": tokens, "valid": valid, "mask": valid & (np.arange(9) > 0)}
    packed_tokens, segments, positions = (np.asarray(x) for x in pack(rows, 12))
    packed = {
        "tokens": packed_tokens,
        "valid": segments > 0,
        "segments": segments,
        "mask": (segments > 0) & (positions > 0),
    }
    assert packed_tokens.shape[0] < 8
    loss = language_modelling(MODEL)

    def both(batch, cuts):
        grads, value = jax.jit(lambda p, b: gradients(loss, p, b, cuts))(params, batch)
        return grads, value.terms["nll"].value

    expected = both(whole, 1)
    chex.assert_trees_all_close(both(whole, 4), expected, atol=1e-5)
    chex.assert_trees_all_close(both(packed, 1), expected, atol=1e-5)
    cuts = [{k: x[i : i + 2] for k, x in whole.items()} for i in range(0, 8, 2)]
    naive = np.mean([both(cut, 1)[1] for cut in cuts])
    assert abs(naive - expected[1]) > 1e-3  # the mean of micro-batch means is another number


def test_terms_with_different_masks_accumulate_exactly():
    x = jnp.arange(8.0)
    masks = x > 4, x < 3

    def loss(w, batch):
        x, a, b = batch
        return Loss({"a": Mean.of(w * x, a), "b": Mean.of(w**2 * x, b).scale(0.5)}, {})

    grad, _ = gradients(loss, jnp.array(2.0), (x, *masks), 4)
    np.testing.assert_allclose(grad, 6.0 + 0.5 * 2 * 2.0 * 1.0, rtol=1e-6)


def test_micro_batches_must_divide():
    with pytest.raises(ValueError, match=r"micro_batches.* divide a batch of 8 rows, found 3"):
        gradients(lambda p, b: Loss({}, {}), 1.0, jnp.zeros(8), 3)


def test_a_step_compiles_once_and_seeds_share_it(tmp_path):
    program = reward_program(steps=3)
    for seed in (0, 1):
        source = ArraySource(preferences(), 8, seed)
        program.run(Run(tmp_path / str(seed), seed), source=source)
    assert program.loop._chunk._cache_size() == 1


def test_the_state_is_donated():
    program = reward_program()
    state = program.start(jax.random.key(0))
    batch = {k: v[None, :8] for k, v in preferences().items()}
    program.loop._chunk(state, batch, None, jax.random.key(0))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


def files(folder: Path) -> bytes:
    return (folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("stop", [2, 5])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, stop):
    """Killed after `stop` steps (checkpoints every 2), resumed: parameters and metrics are equal."""

    class Killed(Exception):
        pass

    class Deadly(ArraySource):
        def next(self):
            if self.state()["step"] == stop:
                raise Killed
            return super().next()

    program = reward_program(steps=6, checkpoint_every=2)
    whole = program.run(Run(tmp_path / "a", 0), source=ArraySource(preferences(), 8, 0))
    with pytest.raises(Killed), Run(tmp_path / "b", 0) as run:
        program.run(run, source=Deadly(preferences(), 8, 0))
    with Run(tmp_path / "b", 0) as run:
        resumed = program.run(run, source=ArraySource(preferences(), 8, 0))
    chex.assert_trees_all_equal(jax.device_get(whole), jax.device_get(resumed))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    again = program.run(Run(tmp_path / "b", 0), source=ArraySource(preferences(), 8, 0))
    chex.assert_trees_all_equal(jax.device_get(again), jax.device_get(resumed))


def test_an_unreadable_checkpoint_is_reported_and_the_one_before_is_used(tmp_path):
    observer = Listener()
    program = reward_program(steps=6, checkpoint_every=2)
    whole = program.run(Run(tmp_path, 0), source=ArraySource(preferences(), 8, 0))
    for file in sorted((tmp_path / "checkpoints" / "6").rglob("*")):
        if file.is_file() and file.stat().st_size > 0:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    run = Run(tmp_path, 0, observer=observer)
    resumed = program.run(run, source=ArraySource(preferences(), 8, 0))
    assert any("checkpoint 6 cannot be read" in w for w in observer.warnings)
    chex.assert_trees_all_equal(jax.device_get(whole), jax.device_get(resumed))


def test_a_non_finite_loss_names_step_arm_and_metric(tmp_path):
    def step(state, batch, frozen, key):
        value = jnp.where(state.step == 2, jnp.nan, 1.0)
        return state, {"loss": Mean.of(value), "accuracy": Mean.of(value)}

    loop = Loop(LoopConfig(steps=4, steps_per_call=1, checkpoint_every=1), step)
    state = TrainState.create(jnp.ones(2), optax.identity())
    with pytest.raises(NonFinite, match=r"arm 'dpo': loss is nan at step 3"):
        loop.run(Run(tmp_path, 0, "dpo"), state)
    assert (
        sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())[-1]
        == 2
    )


def test_ctrl_c_saves_the_current_state(tmp_path):
    def step(state, batch, frozen, key):
        return state.replace(params=state.params + 1), {"loss": Mean.of(state.params)}

    class Interrupting:
        def progress(self, label, done, total, metrics):
            if done == 3:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)

        def finished(self, label, metrics): ...
        def warn(self, label, message): ...

    loop = Loop(LoopConfig(steps=5, steps_per_call=1), step)
    with pytest.raises(KeyboardInterrupt), Run(tmp_path, 0, observer=Interrupting()) as run:
        loop.run(run, TrainState.create(jnp.zeros(()), optax.identity()))
    with Run(tmp_path, 0) as run:
        state = loop.run(run, TrainState.create(jnp.zeros(()), optax.identity()))
        assert float(state.params) == 5
        np.testing.assert_array_equal(run.history("loss"), range(5))


def test_learning_rate_zero_keeps_every_ratio_at_one(tmp_path):
    program = policy_program(rate=0.0, epochs=2)
    before = jax.device_get(program.start(jax.random.key(0)).params)
    with Run(tmp_path, 0) as run:
        program.run(run)
        np.testing.assert_allclose(run.history("ratio_max"), 1.0, atol=1e-4)
        np.testing.assert_allclose(run.history("logprob_difference"), 0.0, atol=1e-5)
        np.testing.assert_allclose(run.history("approx_kl_k3"), 0.0, atol=1e-6)
        np.testing.assert_array_equal(run.history("clip_fraction"), 0.0)
    chex.assert_trees_all_equal(before, jax.device_get(program.start(jax.random.key(0)).params))


def test_rows_that_do_not_apply_change_nothing():
    def some(traj):
        applicable = jnp.arange(traj.mask.shape[0]) % 4 < 2
        values = jnp.sum(traj.tokens, axis=1) * 1.0
        return rewards.outcome(values, traj.mask, applicable=applicable)

    program = policy_program(reward=some)
    state = jax.jit(program.start)(jax.random.key(0))
    _, metrics = jax.jit(program.step)(state, None, None, jax.random.key(1))
    assert float(metrics["applicable"].value) == 0.5
    assert float(metrics["entropy"].weight) < 32 * 6 / 2 + 1


class Listener:
    """An observer that keeps the warnings."""

    def __init__(self):
        self.warnings = []

    def progress(self, label, done, total, metrics): ...
    def finished(self, label, metrics): ...
    def warn(self, label, message):
        self.warnings.append(message)


@pytest.mark.parametrize("kind", ["constant", "none"])
def test_a_reward_that_teaches_nothing_is_warned_about(tmp_path, kind):
    def reward(traj):
        ones = jnp.ones(traj.mask.shape[0])
        return rewards.outcome(ones, traj.mask, applicable=ones > (0 if kind == "constant" else 1))

    observer = Listener()
    with Run(tmp_path, 0, observer=observer) as run:
        policy_program(reward=reward).run(run)
    word = "constant in every group" if kind == "constant" else "no step has an action"
    assert sum(word in w for w in observer.warnings) == 1


def test_an_empty_mask_is_warned_about(tmp_path):
    observer, batch = Listener(), preferences()
    batch = {k: v[:, 0] for k, v in batch.items()} | {"mask": np.zeros((16, 9), bool)}
    config = SupervisedConfig(batch_size=8, loop=LoopConfig(steps=1, steps_per_call=1))
    program = Supervised(config, init=MODEL.boxed_init, loss=language_modelling(MODEL))
    with Run(tmp_path, 0, observer=observer) as run:
        program.run(run, source=ArraySource(batch, 8, 0))
    assert any("is every mask empty?" in w for w in observer.warnings)


def test_a_metric_that_would_hide_another_is_refused():
    program = policy_program()
    program.measure = lambda traj: {"entropy": Mean.of(traj.logprobs)}
    with pytest.raises(ValueError, match="expected different names, found entropy twice"):
        jax.eval_shape(
            lambda: program.step(program.start(jax.random.key(0)), None, None, jax.random.key(1))
        )


def test_minibatches_must_divide():
    program = policy_program()
    program.config = dataclasses.replace(program.config, minibatches=5)
    with pytest.raises(ValueError, match=r"minibatches=5 x micro_batches=1 does not divide"):
        jax.eval_shape(
            lambda: program.step(program.start(jax.random.key(0)), None, None, jax.random.key(1))
        )


def test_schedules_by_hand():
    config = OptimizerConfig(learning_rate=1.0, schedule="linear", warmup=0.2, end_fraction=0.5)
    rates = [float(learning_rate(config, 10)(i)) for i in (0, 1, 2, 6, 10)]
    np.testing.assert_allclose(rates, [0, 0.5, 1, 0.75, 0.5])
    cosine = learning_rate(OptimizerConfig(learning_rate=2.0, schedule="cosine"), 10)
    np.testing.assert_allclose([cosine(0), cosine(5), cosine(10)], [2, 1, 0], atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "lion"])
def test_every_optimizer_descends(name):
    tx = make_optimizer(OptimizerConfig(name=name, learning_rate=0.1), 50)
    params = jnp.array([3.0, -2.0])
    state = tx.init(params)
    for _ in range(50):
        updates, state = tx.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
    assert float(jnp.sum(params**2)) < 2.0


def test_stride_divides_every_cadence():
    assert LoopConfig(steps=300, steps_per_call=25, evaluate_every=20).stride == 5
    with pytest.raises(ValueError, match="steps and steps_per_call must be at least 1"):
        LoopConfig(steps=0)


def test_a_mesh_larger_than_the_machine_is_an_error():
    with pytest.raises(ValueError, match="needs 16 devices, found 8"):
        reward_program(MeshConfig(4, 2, 2))
