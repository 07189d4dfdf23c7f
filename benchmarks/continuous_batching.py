"""Continuous batching beside static batches of the same size, on long-tailed response lengths.

    python -m benchmarks.continuous_batching [--slots 16] [--prompts 16] [--repeats 5]

Lengths are drawn from a log-normal distribution and forced (no token stops a response), so that all
sides write the same number of tokens. Prints two JSON lines, as `benchmarks.lm_steps` does, with
written tokens a second: `peer` is a static batch that ends with its longest response, then the
plain sampler, which always runs to the longest response allowed.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import report, seconds_per_call
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.sampling.engine import generate_continuous
from rewardjax.sampling.generate import generate
from rewardjax.trajectory import Prompts

GROUP, PROMPT, LONGEST, MEDIAN, SPREAD = 8, 16, 256, 32, 1.0
CONFIG = TransformerConfig(
    vocab=256, layers=4, width=256, heads=4, kv_heads=4, head_dim=64, mlp_width=1024, context=512
)


def lengths(rows: int) -> np.ndarray:
    """Response lengths of all rows, log-normal, cut at the longest allowed."""
    drawn = np.random.default_rng(0).lognormal(np.log(MEDIAN), SPREAD, rows)
    return np.clip(drawn, 1, LONGEST).astype(np.int32)


def samplers(prompts: int, slots: int) -> dict[str, Callable]:
    """Three calls that write the same responses; only their schedules differ."""
    model = LanguageModel(CONFIG)
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (prompts, PROMPT), 0, CONFIG.vocab)
    asked = Prompts(tokens, jnp.ones_like(tokens, bool))
    limits = jnp.asarray(lengths(prompts * GROUP))
    common: dict[str, Any] = {"max_new": LONGEST, "stop": (-1,), "group_size": GROUP}
    engine = jax.jit(partial(generate_continuous, model, slots=slots, **common))
    plain = jax.jit(partial(generate, model, **common))

    def batches(sample: Callable, key):
        return [
            sample(slice(i, i + slots // GROUP), key) for i in range(0, prompts, slots // GROUP)
        ]

    def static(part: slice, key):
        rows = slice(part.start * GROUP, part.stop * GROUP)
        few = Prompts(tokens[part], asked.valid[part])
        return engine(params, few, key, limits=limits[rows]).tokens

    def full(part: slice, key):
        return plain(params, Prompts(tokens[part], asked.valid[part]), key).tokens

    return {
        "continuous": lambda i: engine(params, asked, jax.random.key(i), limits=limits).tokens,
        "static": lambda i: batches(static, jax.random.key(i)),
        "plain": lambda i: batches(full, jax.random.key(i)),
    }


def main() -> None:
    """Time the three schedules."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.slots % GROUP or arguments.prompts * GROUP % arguments.slots:
        parser.error(
            f"--slots: expected a multiple of {GROUP} that divides {arguments.prompts * GROUP} rows, "
            f"found {arguments.slots}"
        )
    written = int(lengths(arguments.prompts * GROUP).sum())
    rates, compilation = {}, 0.0
    for name, call in samplers(arguments.prompts, arguments.slots).items():
        seconds, first = seconds_per_call(call, arguments.repeats)
        rates[name] = round(written / seconds, 1)
        compilation = compilation or first - seconds
    for name in ("static", "plain"):
        report(
            f"continuous_batching_vs_{name}",
            rates["continuous"],
            rates[name],
            "written tokens a second",
            compilation,
            more_is_better=True,
        )


if __name__ == "__main__":
    main()
