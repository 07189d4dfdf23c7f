"""The training loop: the one place between pure steps and files."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rewardjax.data.sources import DivisibleSource
from rewardjax.training.checkpoint import Checkpoints
from rewardjax.training.distributed import agreed
from rewardjax.training.run import Run
from rewardjax.training.sharding import batch_sharding, placed, placed_rows, replicated, rows_on
from rewardjax.training.signals import interruption, stop_for
from rewardjax.training.state import Metrics, TrainState

# step(state, batch, frozen, key) -> (state, metrics)
Step = Callable[[TrainState, Any, Any, jax.Array], tuple[TrainState, Metrics]]


class HostStep(NamedTuple):
    """An update with the host in the middle: two pieces that bring their own compiled programs.

    Attributes:
      begin: `(state, batch, frozen, key) -> (state, begun)`; does not wait for the device.
      finish: `(state, begun, frozen, key) -> (state, metrics)`: the host's part and what follows it.
      ahead: how many updates are begun before one is finished, so that the device works meanwhile.
        They are all finished at the end of a program call: nothing is under way when a checkpoint is
        written or the policy is evaluated.
    """

    begin: Callable[[TrainState, Any, Any, jax.Array], tuple[TrainState, Any]]
    finish: Callable[[TrainState, Any, Any, jax.Array], tuple[TrainState, Metrics]]
    ahead: int = 0


# Reads the metrics of consecutive steps, `[steps]` each, and returns warnings.
Watch = Callable[[dict[str, np.ndarray]], list[str]]


class NonFinite(ArithmeticError):
    """A loss or a gradient stopped being a number."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long to train and how often to look.

    Attributes:
      steps: updates in all.
      steps_per_call: updates compiled into one program call, between which Python writes metrics; lowered to
        a common divisor of all the other numbers here.
      checkpoint_every: updates between checkpoints; 0 for one at the end.
      evaluate_every: updates between evaluations; 0 for none.
      keep: checkpoints kept.
    """

    steps: int = 100
    steps_per_call: int = 10
    checkpoint_every: int = 0
    evaluate_every: int = 0
    keep: int = 2

    def __post_init__(self):
        if self.steps < 1 or self.steps_per_call < 1:
            raise ValueError(f"LoopConfig: steps and steps_per_call must be at least 1: {self}")

    @property
    def stride(self) -> int:
        """Updates in one program call."""
        numbers = [self.steps, self.steps_per_call, self.checkpoint_every, self.evaluate_every]
        return math.gcd(*(n for n in numbers if n))


def smoke(config: Any, *, steps: int = 4, **settings: Any) -> Any:
    """A configuration with every `LoopConfig` in it, at any depth, cut to a few steps, for tests.

    Args:
      config: a frozen dataclass.
      steps: of each loop, two in a call; with an evaluation every other step where there were any.
      **settings: other fields of `config` to replace.
    """
    if isinstance(config, LoopConfig):
        evaluate = 2 if config.evaluate_every else 0
        return LoopConfig(steps=steps, steps_per_call=2, evaluate_every=evaluate)
    changed = {
        field.name: smoke(getattr(config, field.name), steps=steps)
        for field in dataclasses.fields(config)
        if dataclasses.is_dataclass(getattr(config, field.name))
    }
    return dataclasses.replace(config, **(changed | settings))


class Loop:
    """A compiled step and what happens around it. Built once, then run for each seed.

    Args:
      config: lengths and cadences.
      step: the pure update; it is scanned over `config.stride` updates and compiled as a whole. A
        `HostStep` is called once an update instead, and `evaluate` is then not compiled either.
      evaluate: `(params, frozen, key) -> metrics`, run every `evaluate_every` updates, compiled.
      mesh: the devices; None for one.
      watch: reads each program call's metrics, `[steps]` each, and returns warnings.
    """

    def __init__(
        self, config: LoopConfig, step: Step | HostStep, evaluate=None, mesh=None, watch=None
    ):
        self.config, self.mesh = config, mesh
        self._watch: Watch = watch or (lambda values: [])
        self._evaluate: Callable | None = evaluate
        if isinstance(step, HostStep):
            self._together, self._chunk = False, _in_turn(step, config.stride)
            return
        self._together, self._chunk = mesh is None, _scanned(step, config, mesh)
        if evaluate is not None:
            self._evaluate = jax.jit(evaluate)

    def run(self, run: Run, state: TrainState, *, source=None, frozen=None) -> TrainState:
        """Train from `state`, or from the newest checkpoint in the run's folder.

        Args:
          run: folder, key and observer.
          state: the state at step 0. Its buffers are given up.
          source: gives a batch per update (`rewardjax.data.sources`); None where steps need none.
          frozen: arrays that the step reads and never changes.

        Returns:
          The state after the last step.

        Raises:
          NonFinite: a loss or gradient is not finite; the last good checkpoint stays.
          KeyboardInterrupt: Ctrl-C, after the current state has been saved.
          Terminated: SIGTERM, likewise; also where another process got it.
        """
        config = self.config
        with Checkpoints(run.folder / "checkpoints", keep=config.keep) as checkpoints:
            found = checkpoints.restore(state, run.warn)
            if found is not None:
                state, position = found
                if source is not None:
                    source.restore(position)
            done = int(state.step)
            run.rewind(done)
            mesh = contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
            with mesh, interruption() as interrupted:
                state = jax.tree.map(jnp.copy, state) if found is None else state
                for done, state in self._chunks(run, state, source, frozen, done):  # noqa: B020
                    last = done == config.steps
                    due = config.checkpoint_every and done % config.checkpoint_every == 0
                    told = agreed(interrupted() or (run.seat.cohort.stopping() if run.seat else 0))
                    if last or due or told:
                        run.flush()
                        at = None if source is None else source.state()
                        save_checkpoint(run, checkpoints, done, state, at)
                    if told:
                        checkpoints.wait()
                        raise stop_for(told)
            run.flush()
        return state

    def _chunks(self, run: Run, state, source, frozen, done: int) -> Iterator[tuple[int, Any]]:
        config, stride = self.config, self.config.stride
        evaluation_key = jax.random.fold_in(run.key, 2**31 - 1)
        while done < config.steps:
            start = time.perf_counter()
            batches = None if source is None else self._stack(source, stride)
            state, metrics = self._call(run, self._chunk, state, batches, frozen, run.key)
            values = {name: np.asarray(x) for name, x in metrics.items()}
            check_finite(values, done, run.arm)
            for message in self._watch(values):
                run.warn(message)
            for i in range(stride):
                run.log(done + i + 1, {name: float(x[i]) for name, x in values.items()})
            done += stride
            seconds = (time.perf_counter() - start) / stride
            run.perf(done, {"seconds_per_step": seconds})
            if self._evaluate and config.evaluate_every and done % config.evaluate_every == 0:
                key = jax.random.fold_in(evaluation_key, done)
                found = self._call(run, self._evaluate, state.params, frozen, key)
                run.log(done, {f"eval/{k}": float(v) for k, v in found.items()})
            run.progress(done, config.steps, {name: float(x[-1]) for name, x in values.items()})
            yield done, state

    def _call(self, run: Run, program, *arguments):
        """The program's result, computed together with those of the seeds beside this one."""
        if run.seat is None or not self._together:
            return program(*arguments)
        return run.seat.call(program, *arguments)

    def _stack(self, source, count: int):
        """The next batches on the mesh; each process reads its own rows of them where the source can."""
        if self.mesh is None:
            return _stacked([source.next() for _ in range(count)])
        sharding = batch_sharding(self.mesh, stacked=True)
        if jax.process_count() == 1 or not isinstance(source, DivisibleSource):
            return placed(_stacked([source.next() for _ in range(count)]), sharding)
        rows = rows_on(self.mesh, source.batch_size, jax.local_devices())
        batches = [source.next_rows(rows) for _ in range(count)]
        return placed_rows(_stacked(batches), sharding, rows, source.batch_size)


def _scanned(step: Step, config: LoopConfig, mesh):
    """The updates of a program call as one compiled program."""

    def scanned(state, batches, frozen, key):
        def body(state, batch):
            state, metrics = step(state, batch, frozen, jax.random.fold_in(key, state.step))
            return state.replace(step=state.step + 1), _values(metrics)

        return jax.lax.scan(body, state, batches, length=config.stride)

    # Every process reads the metrics.
    out = None if mesh is None else (None, replicated(mesh))
    return jax.jit(scanned, donate_argnums=0, out_shardings=out)


def _in_turn(step: HostStep, count: int):
    """The updates of a program call one after the other, `step.ahead` of them begun early."""
    # As one program: a device takes few calls that it has not begun, and Python would wait for it.
    read = jax.jit(_values)

    def in_turn(state, batches, frozen, key):
        rows, begun = [], []
        first = int(state.step)
        keys = [jax.random.fold_in(key, first + i) for i in range(count)]
        for i in range(count + step.ahead):
            if i < count:
                batch = None if batches is None else jax.tree.map(lambda x, i=i: x[i], batches)
                state, new = step.begin(state, batch, frozen, keys[i])
                begun.append(new)
            if (done := i - step.ahead) >= 0:
                state, metrics = step.finish(state, begun.pop(0), frozen, keys[done])
                state = state.replace(step=state.step + 1)
                rows.append(read(metrics))
        return state, {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    return in_turn


def _values(metrics: Metrics) -> dict[str, jax.Array]:
    return {name: mean.value for name, mean in metrics.items()}


def _stacked(batches: list):
    return jax.tree.map(lambda *rows: np.stack(rows), *batches)


def save_checkpoint(run: Run, checkpoints: Checkpoints, step: int, state, position) -> None:
    """Start writing a checkpoint; where seeds run side by side, write it: Orbax takes one at a time."""
    if run.seat is None:
        checkpoints.save(step, state, position)
        return
    with run.seat.cohort.alone:
        checkpoints.save(step, state, position)
        checkpoints.wait()


def check_finite(values: dict[str, np.ndarray], done: int, arm: str) -> None:
    """Raises NonFinite where a loss or gradient norm is not finite, naming arm, step and metric.

    Args:
      values: each metric over consecutive updates.
      done: updates before the first of them.
      arm: whose they are.
    """
    for name, x in values.items():
        if name.startswith("loss") or name.endswith("grad_norm"):
            bad = np.flatnonzero(~np.isfinite(x))
            if bad.size:
                raise NonFinite(
                    f"arm {arm!r}: {name} is {x[bad[0]]} at step {done + int(bad[0]) + 1};"
                    " the last good checkpoint is kept"
                )
