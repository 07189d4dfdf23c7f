"""A policy-gradient step whose reward takes the host a while, with and without overlap.

    python -m benchmarks.host_overlap [--seconds 0.2] [--steps 20]

The host sleeps, as one does that waits for a service. Prints a JSON line, as `benchmarks.lm_steps` does, with
seconds a step; `peer` is the same run without overlap. A third figure, on standard error, is the
step whose host answers at once: the least that overlap could reach.
"""

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import report
from rewardjax import credit, rewards
from rewardjax.losses import Loss
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig, scored
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.statistics import Mean
from rewardjax.training.loop import LoopConfig
from rewardjax.training.run import Run
from rewardjax.trajectory import Prompts

GROUP, PROMPTS, COLUMNS, NEW = 8, 8, 8, 24
CONFIG = TransformerConfig(
    vocab=128, layers=2, width=128, heads=4, kv_heads=4, head_dim=32, mlp_width=512, context=32
)


def program(seconds: float, steps: int, overlap: bool) -> PolicyGradient:
    """A small language model, rewarded for the sum of its tokens after `seconds`."""
    model = LanguageModel(CONFIG)
    policy = LanguagePolicy(model, NEW, stop=(), group_size=GROUP, prompt_columns=COLUMNS)

    def prompts(key, n):
        tokens = jax.random.randint(key, (n, COLUMNS), 1, CONFIG.vocab)
        return Prompts(tokens, jnp.ones(tokens.shape, bool))

    def on_host(traj):
        time.sleep(seconds)
        return {"sum": np.sum(traj.actions * traj.mask, axis=1).astype(np.float32)}

    def loss(scores, traj, advantages):
        ratio = jnp.exp(scores.logprobs - traj.logprobs)
        return Loss({"policy": Mean.of(-ratio * advantages, traj.mask)}, {})

    return PolicyGradient(
        PolicyGradientConfig(
            prompts=PROMPTS, loop=LoopConfig(steps=2 * steps, steps_per_call=steps)
        ),
        init=model.boxed_init,
        rollout=policy.rollout,
        loss=scored(policy.score, loss),
        reward=lambda traj: rewards.outcome(traj.info["sum"], traj.mask),
        credit=partial(credit.group_relative, group_size=GROUP),
        prompts=prompts,
        on_host=on_host,
        overlap=overlap,
    )


def seconds_per_step(seconds: float, steps: int, overlap: bool) -> tuple[float, float]:
    """Of a second program call; and what the first took longer, which compiles."""
    with tempfile.TemporaryDirectory() as folder:
        with Run(Path(folder)) as run:
            program(seconds, steps, overlap).run(run)
        lines = (Path(folder) / "perf.jsonl").read_text().splitlines()
    first, second = (json.loads(line)["seconds_per_step"] for line in lines)
    return second, steps * (first - second)


def main() -> None:
    """Time the runs and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.2, help="that the host takes a batch")
    parser.add_argument("--steps", type=int, default=20, help="in a program call")
    arguments = parser.parse_args()
    least, _ = seconds_per_step(0.0, arguments.steps, False)
    print(f"a host that answers at once: {least:.3f} s a step", file=sys.stderr)
    peer, _ = seconds_per_step(arguments.seconds, arguments.steps, False)
    ours, compiling = seconds_per_step(arguments.seconds, arguments.steps, True)
    report("host_overlap", ours, peer, "s/step", compiling)


if __name__ == "__main__":
    main()
