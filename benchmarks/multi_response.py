"""Speed of scoring several responses to one prompt in one pass, beside as many rows of their own.

    python -m benchmarks.multi_response [--prompt 192] [--response 32] [--count 4]

Prints a JSON line each for independent and for joint scores; `peer` is `RewardModel.score` of the same
prompts with each response in a row of its own, in one batch. Seconds a call, without compilation.
"""

import argparse
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.measure import report, seconds_per_call
from rewardjax.models.heads import RewardModel
from rewardjax.models.multi_response import MultiResponse, in_rows
from rewardjax.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The sizes that are compared: `prompts` prompts, each with `count` responses."""

    prompt: int = 192
    response: int = 32
    count: int = 4
    prompts: int = 16
    vocab: int = 512
    layers: int = 4
    width: int = 256
    heads: int = 4

    @property
    def model(self) -> RewardModel:
        """The scorer."""
        config = TransformerConfig(
            vocab=self.vocab,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.width // self.heads,
            mlp_width=2 * self.width,
            context=self.prompt + self.count * (self.response + 1),
        )
        return RewardModel(config, spread=0.1)


def single(model: RewardModel, params, prompt, prompt_valid, responses, valid):
    """Scores of the rows prompt and response."""
    tokens, held, _ = in_rows(prompt, prompt_valid, responses, valid)
    return model.score(params, tokens, held)


def lists(s: Shapes):
    """Random prompts and responses of full length."""
    keys = jax.random.split(jax.random.key(1))
    prompt = jax.random.randint(keys[0], (s.prompts, s.prompt), 1, s.vocab)
    responses = jax.random.randint(keys[1], (s.prompts, s.count, s.response), 1, s.vocab)
    return prompt, jnp.ones_like(prompt, bool), responses, jnp.ones_like(responses, bool)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("prompt", "response", "count", "prompts"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Shapes(), name))
    parser.add_argument("--repeats", type=int, default=10)
    arguments = vars(parser.parse_args())
    repeats = arguments.pop("repeats")
    s = Shapes(**arguments)
    model, data = s.model, lists(s)
    params, reader = model.init(jax.random.key(0)), MultiResponse(model, separator=0)
    alone, _ = seconds_per_call(_call(partial(single, model), params, data), repeats)
    for name in ("independent", "joint"):
        call = _call(getattr(reader, name), params, data)
        ours, first = seconds_per_call(call, repeats)
        shape = f"{s.prompt}+{s.count}x{s.response}"
        unit = "seconds a call"
        report(f"multi_response_{name}_{shape}", ours, alone, unit, first - ours)


def _call(score, params, data):
    compiled = jax.jit(score)
    return lambda i: compiled(params, *data)


if __name__ == "__main__":
    main()
