"""Speed of PPO on Pendulum-v1, beside Stable-Baselines3 with the same settings.

    python -m benchmarks.control_steps [--peer-python PY]

Prints one JSON line: `benchmark`, `ours`, `peer`, `ratio` (above 1: ours is faster), `unit`,
`hardware`, `peak_memory_mb`, `compile_seconds`. An update is a batch of whole episodes and its
gradient steps. PY is a Python that has torch, gymnasium and stable-baselines3; without it `peer`
and `ratio` are null.
"""

import argparse
import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import report, seconds_per_call, stepper
from rewardjax.envs.control import gymnax_environment
from rewardjax.recipes.control import PPOConfig, ppo
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.sampling.control import ControlPolicy
from rewardjax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """What both sides run: each minibatch is a share of the episodes (ours) or steps (the peer's)."""

    environment: str = "Pendulum-v1"
    episodes: int = 16
    time_limit: int = 200
    epochs: int = 10
    minibatches: int = 8
    widths: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3
    discount: float = 0.9
    lam: float = 0.95
    clip: float = 0.2


def pendulum(s: Settings) -> Callable:
    """One update: `i -> metrics`."""
    optimizer = OptimizerConfig(learning_rate=s.learning_rate)
    rl = PolicyGradientConfig(
        prompts=s.episodes, epochs=s.epochs, minibatches=s.minibatches, optimizer=optimizer
    )
    config = PPOConfig(rl, critic=optimizer, discount=s.discount, lam=s.lam, clip=s.clip)
    environment = gymnax_environment(s.environment, time_limit=s.time_limit)
    return stepper(ppo(config, ControlPolicy(environment, s.widths)), None, None)


def measure_peer(python: str, s: Settings, updates: int) -> float:
    """The peer's environment steps a second."""
    script = Path(__file__).with_name("sb3_peer.py")
    arguments = [python, str(script), json.dumps(dataclasses.asdict(s)), str(updates)]
    found = subprocess.run(arguments, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"--peer-python {python}: PPO failed:\n{found.stderr[-2000:]}")
    return float(json.loads(found.stdout.strip().splitlines()[-1])["steps_per_second"])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="a Python with torch and stable-baselines3")
    parser.add_argument("--updates", type=int, default=20)
    arguments = parser.parse_args()
    s = Settings()
    seconds, first = seconds_per_call(pendulum(s), arguments.updates)
    ours, peer = s.episodes * s.time_limit / seconds, None
    if arguments.peer_python:
        peer = measure_peer(arguments.peer_python, s, arguments.updates)
    report(
        f"ppo_{s.environment}",
        round(ours),
        peer and round(peer),
        "environment steps a second",
        first - seconds,
        more_is_better=True,
    )


if __name__ == "__main__":
    main()
