"""How near the language-model programs come to what the device can do.

    python -m benchmarks.device_limits [--model tiny|0.5b|1.5b] [--only training,decoding,checkpoint]

Prints one JSON line a benchmark: the figure, the device's limit and the fraction reached. The limits of known
accelerators are the published ones; a CPU's are measured here, with one large matrix product and one copy.

- training: model FLOPs a second (6 a parameter and token, and causal attention; what is recomputed does not
  count) over the peak of matrix products;
- decoding: bytes of weights and cache that must be read for each step, over the memory's bandwidth;
- checkpoint: bytes of a train state saved and restored, a second.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import hardware, seconds_per_call, stepper
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import QWEN25_0_5B, QWEN25_1_5B
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import language_modelling
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.training.checkpoint import Checkpoints
from rewardjax.trajectory import Prompts

# Dense bfloat16 operations a second, and bytes a second, as the vendor gives them.
PUBLISHED = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12), "A100": (312e12, 2.04e12)}


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and the shapes that it is run in.

    Attributes:
      model: its configuration.
      rows, length: of a training batch.
      sampled, prompt, new: sequences decoded at a time, tokens of a prompt and of a response.
    """

    model: TransformerConfig
    rows: int = 8
    length: int = 2048
    sampled: int = 64
    prompt: int = 128
    new: int = 256


TINY = TransformerConfig(512, 4, 256, 4, 4, 64, 1024, context=512)
SIZES = {
    "tiny": Size(TINY, rows=4, length=256, sampled=64, prompt=16, new=64),
    "0.5b": Size(QWEN25_0_5B, rows=16),
    "1.5b": Size(QWEN25_1_5B),
}


def parameters(config: TransformerConfig) -> int:
    """Parameters that a token is multiplied with: the input embedding is only looked up."""
    shapes = jax.eval_shape(LanguageModel(config).init, jax.random.key(0))
    total = sum(x.size for x in jax.tree.leaves(shapes))
    return total if config.tied_embeddings else total - config.vocab * config.width


def training_flops(size: Size) -> float:
    """Model FLOPs of one update."""
    c, tokens = size.model, size.rows * size.length
    attention = 6 * c.layers * c.heads * c.head_dim * size.length  # half of it is masked
    return tokens * (6.0 * parameters(c) + attention)


def decoding_bytes(size: Size) -> float:
    """Bytes that a decoding step must read, on average over a response."""
    c, width = size.model, jnp.dtype(size.model.dtype).itemsize
    slots = size.prompt + size.new / 2
    cache = 2 * c.layers * c.kv_heads * c.head_dim * slots * size.sampled
    return width * (parameters(c) + cache)


def limits() -> tuple[float, float]:
    """Operations and bytes a second that the device can do."""
    kind = jax.devices()[0].device_kind
    for name, figures in PUBLISHED.items():
        if name in kind:
            return figures
    square = jnp.ones((2048, 2048))
    multiply, add = jax.jit(jnp.matmul), jax.jit(jnp.add)
    product, _ = seconds_per_call(lambda i: multiply(square, square), 5)
    long = jnp.ones(2**26)
    copy, _ = seconds_per_call(lambda i: add(long, i), 5)
    return 2 * 2048**3 / product, 2 * long.nbytes / copy


def training(size: Size, peak: float, bandwidth: float) -> dict:
    """Language modelling on random tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, size.model.vocab, (size.rows, size.length), dtype=np.int32)
    on = np.ones(tokens.shape, bool)
    model = LanguageModel(size.model)
    program = Supervised(
        SupervisedConfig(size.rows), init=model.boxed_init, loss=language_modelling(model)
    )
    batch = jax.device_put({"tokens": tokens, "valid": on, "mask": on})
    seconds, first = seconds_per_call(stepper(program, batch, None), 5)
    reached = training_flops(size) / seconds
    return {
        "tokens_per_second": tokens.size / seconds,
        "model_flops_per_second": reached,
        "limit": peak,
        "fraction": reached / peak,
        "first_step_seconds": first,
    }


def decoding(size: Size, peak: float, bandwidth: float) -> dict:
    """Sampling of responses that all have the full length, the prompts' prefill included."""
    policy = LanguagePolicy(LanguageModel(size.model), size.new, (-1,), prompt_columns=size.prompt)
    cast = partial(jax.tree.map, lambda x: x.astype(size.model.dtype))
    params = jax.jit(lambda key: cast(policy.model.init(key)))(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (size.sampled, size.prompt), 0, size.model.vocab)
    prompts = Prompts(tokens, jnp.ones(tokens.shape, bool))
    sample = jax.jit(policy.rollout)
    seconds, _ = seconds_per_call(lambda i: sample(params, prompts, jax.random.key(i)).tokens, 3)
    reached = decoding_bytes(size) * size.new / seconds
    return {
        "tokens_per_second": size.sampled * size.new / seconds,
        "bytes_per_second": reached,
        "limit": bandwidth,
        "fraction": reached / bandwidth,
    }


def checkpoint(size: Size, peak: float, bandwidth: float) -> dict:
    """A train state with Adam's moments, to a temporary folder and back."""
    model = LanguageModel(size.model)
    program = Supervised(SupervisedConfig(), init=model.boxed_init, loss=language_modelling(model))
    state = program.start(jax.random.key(0))
    total = sum(x.nbytes for x in jax.tree.leaves(state))
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:
        start = time.perf_counter()
        checkpoints.save(1, state, None)
        blocked = time.perf_counter() - start
        checkpoints.wait()
        saved = time.perf_counter() - start
        start = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(state, print))
        restored = time.perf_counter() - start
    return {
        "bytes": total,
        "save_bytes_per_second": total / saved,
        "restore_bytes_per_second": total / restored,
        "loop_stands_still_seconds": blocked,
    }


BENCHMARKS = {"training": training, "decoding": decoding, "checkpoint": checkpoint}


def main() -> None:
    """Run the benchmarks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="tiny")
    parser.add_argument("--only", help="comma-separated names", default=",".join(BENCHMARKS))
    arguments = parser.parse_args()
    peak, bandwidth = limits()
    for name in arguments.only.split(","):
        if name not in BENCHMARKS:
            parser.error(f"--only: expected some of {', '.join(BENCHMARKS)}, found {name!r}")
        found = BENCHMARKS[name](SIZES[arguments.model], peak, bandwidth)
        rounded = {key: float(f"{value:.4g}") for key, value in found.items()}
        line = {"benchmark": name, "model": arguments.model, **rounded, "hardware": hardware()}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
