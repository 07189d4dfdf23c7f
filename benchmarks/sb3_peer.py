"""The other side of `benchmarks.control_steps`: Stable-Baselines3's PPO, on the CPU.

    python sb3_peer.py SETTINGS_JSON UPDATES

Run by a Python that has torch, gymnasium and stable-baselines3. Prints `{"steps_per_second": ...}`:
environment steps a second of the median update, episodes and gradient steps together.
"""

import json
import statistics
import sys
import time

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


class Clock(BaseCallback):
    """Notes when each batch of episodes begins: a batch and its gradient steps lie between two."""

    def __init__(self):
        super().__init__()
        self.times = []

    def _on_rollout_start(self) -> None:
        self.times.append(time.perf_counter())

    def _on_step(self) -> bool:
        return True


def steps_per_second(s: dict, updates: int) -> float:
    """Environment steps a second, the first update left out."""
    clock, batch = Clock(), s["episodes"] * s["time_limit"]
    widths = s["widths"]
    model = PPO(
        "MlpPolicy",
        make_vec_env(s["environment"], n_envs=s["episodes"]),
        learning_rate=s["learning_rate"],
        n_steps=s["time_limit"],
        batch_size=batch // s["minibatches"],
        n_epochs=s["epochs"],
        gamma=s["discount"],
        gae_lambda=s["lam"],
        clip_range=s["clip"],
        policy_kwargs={"net_arch": {"pi": widths, "vf": widths}, "activation_fn": torch.nn.Tanh},
        device="cpu",
    )
    model.learn(total_timesteps=batch * (updates + 2), callback=clock)
    return batch / statistics.median(b - a for a, b in zip(clock.times[1:], clock.times[2:]))


if __name__ == "__main__":
    torch.manual_seed(0)
    found = steps_per_second(json.loads(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps({"steps_per_second": found}))
