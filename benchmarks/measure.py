"""How benchmarks are timed and printed."""

import json
import platform
import resource
import time
from collections.abc import Callable

import jax
import numpy as np


def stepper(program, batch, frozen) -> Callable:
    """`i -> metrics`: the program's jitted, donating step applied to its own state."""
    step = jax.jit(program.step, donate_argnums=0)
    state = program.start(jax.random.key(0))

    def one(i: int):
        nonlocal state
        state, metrics = step(state, batch, frozen, jax.random.key(i))
        return metrics

    return one


def seconds_per_call(call: Callable, repeats: int) -> tuple[float, float]:
    """(median seconds of a call, seconds of the first call)."""
    start = time.perf_counter()
    jax.block_until_ready(call(0))
    first = time.perf_counter() - start
    times = []
    for i in range(1, repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call(i))
        times.append(time.perf_counter() - start)
    return float(np.median(times)), first


def hardware() -> str:
    """The device that was measured."""
    device = jax.devices()[0]
    return f"{device.device_kind} ({platform.processor() or platform.machine()})"


def report(
    benchmark: str,
    ours: float,
    peer: float | None,
    unit: str,
    compile_seconds: float,
    *,
    more_is_better: bool = False,
) -> None:
    """Print the JSON line of a benchmark; a ratio above 1 means that ours is faster."""
    ratio = None
    if peer is not None:
        ratio = round(ours / peer if more_is_better else peer / ours, 2)
    line = {
        "benchmark": benchmark,
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "unit": unit,
        "hardware": hardware(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "compile_seconds": round(compile_seconds, 2),
    }
    print(json.dumps(line), flush=True)
