"""Speed of the language-model steps, beside TRL and transformers on the same shapes.

    python -m benchmarks.lm_steps [--peer-python PY] [--only grpo,dpo,...]

Prints one JSON line a benchmark: `benchmark`, `ours`, `peer`, `ratio` (above 1: ours is faster), `unit`,
`hardware`, `peak_memory_mb`, `compile_seconds`. PY is a Python that has torch, transformers, trl and
datasets; without it `peer` and `ratio` are null.
"""

import argparse
import dataclasses
import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import report, seconds_per_call, stepper
from rewardjax import credit, losses, rewards
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import direct_preference, reward_modelling
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig, scored
from rewardjax.recipes.preference_lab import pairwise
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.trajectory import Prompts


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The sizes that both sides run."""

    vocab: int = 17
    layers: int = 4
    width: int = 128
    heads: int = 4
    prompts: int = 16
    group: int = 8
    prompt: int = 6
    new: int = 16
    pairs: int = 64  # of preference steps, each response `prompt + new` long


def config(s: Shapes) -> TransformerConfig:
    """The model of every benchmark."""
    return TransformerConfig(
        vocab=s.vocab,
        layers=s.layers,
        width=s.width,
        heads=s.heads,
        kv_heads=s.heads,
        head_dim=s.width // s.heads,
        mlp_width=4 * s.width,
        context=64,
    )


def prompts(s: Shapes, key, n: int) -> Prompts:
    """Random prompts of full length."""
    tokens = jax.random.randint(key, (n, s.prompt), 2, s.vocab)
    return Prompts(tokens, jnp.ones_like(tokens, bool))


def policy(s: Shapes) -> LanguagePolicy:
    """Never stops early, so that every response has `new` tokens."""
    model = LanguageModel(config(s))
    return LanguagePolicy(
        model, max_new=s.new, stop=(-1,), group_size=s.group, prompt_columns=s.prompt
    )


def grpo(s: Shapes) -> Callable:
    """A rollout and its update."""
    acting = policy(s)
    program = PolicyGradient(
        PolicyGradientConfig(prompts=s.prompts),
        init=acting.model.boxed_init,
        rollout=acting.rollout,
        reward=lambda traj: rewards.outcome(jnp.mean(traj.tokens == 3, axis=1), traj.mask),
        credit=partial(credit.group_relative, group_size=s.group),
        loss=scored(acting.score, losses.policy_loss(surrogate=losses.clipped())),
        prompts=partial(prompts, s),
    )
    return stepper(program, None, None)


def pairs(s: Shapes) -> dict[str, np.ndarray]:
    """A batch of random preferences."""
    rng = np.random.default_rng(0)
    shape = (s.pairs, 2, s.prompt + s.new)
    mask = np.broadcast_to(np.arange(shape[-1]) >= s.prompt, shape)
    tokens = rng.integers(2, s.vocab, shape, dtype=np.int32)
    return {"tokens": tokens, "valid": np.ones(shape, bool), "mask": mask}


def dpo(s: Shapes) -> Callable:
    """One update on pairs, the reference scored in the same step."""
    model = LanguageModel(config(s))

    def loss(ratios, batch):
        return losses.bradley_terry(0.1 * (ratios[:, 0] - ratios[:, 1]))

    program = Supervised(
        SupervisedConfig(), init=model.boxed_init, loss=direct_preference(model, loss)
    )
    return stepper(program, pairs(s), model.init(jax.random.key(1)))


def reward_model(s: Shapes) -> Callable:
    """One Bradley-Terry update on pairs."""
    model = RewardModel(config(s))
    program = Supervised(
        SupervisedConfig(), init=model.boxed_init, loss=reward_modelling(model, pairwise)
    )
    return stepper(program, pairs(s), None)


def generation(s: Shapes) -> Callable:
    """Sampling alone: one call writes `prompts * group * new` tokens."""
    acting = policy(s)
    params = acting.model.init(jax.random.key(0))
    asked = prompts(s, jax.random.key(1), s.prompts)
    sample = jax.jit(acting.rollout)
    key = jax.random.key(2)
    return lambda i: sample(params, asked, jax.random.fold_in(key, i)).tokens


BENCHMARKS: dict[str, Callable[[Shapes], Callable]] = {
    "grpo_step": grpo,
    "dpo_step": dpo,
    "reward_model_step": reward_model,
    "generation": generation,
}


def measure_peer(python: str, name: str, s: Shapes, repeats: int) -> float:
    """Seconds a call of the peer's implementation of the same benchmark."""
    script = Path(__file__).with_name("trl_peer.py")
    arguments = [python, str(script), name, json.dumps(dataclasses.asdict(s)), str(repeats)]
    found = subprocess.run(arguments, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"--peer-python {python}: {name} failed:\n{found.stderr[-2000:]}")
    return float(json.loads(found.stdout.strip().splitlines()[-1])["seconds"])


def main() -> None:
    """Run the benchmarks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="a Python with torch, transformers, trl and datasets")
    parser.add_argument("--only", help="comma-separated names", default=",".join(BENCHMARKS))
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    shapes = Shapes()
    for name in arguments.only.split(","):
        if name not in BENCHMARKS:
            parser.error(f"--only: expected some of {', '.join(BENCHMARKS)}, found {name!r}")
        ours, first = seconds_per_call(BENCHMARKS[name](shapes), arguments.repeats)
        peer = None
        if arguments.peer_python:
            peer = measure_peer(arguments.peer_python, name, shapes, arguments.repeats)
        report(name, round(ours, 5), peer and round(peer, 5), "seconds a call", first - ours)


if __name__ == "__main__":
    main()
