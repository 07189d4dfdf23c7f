"""What compares several responses to a prompt: scalar rewards, embeddings of preference, a pair reader.

All give the logits of the row's response being preferred to the column's, and are trained by the same
loss on pairs; they differ in what they can express and in how many passes that takes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rewardjax import losses
from rewardjax.losses import Loss
from rewardjax.models.heads import RewardModel, last_valid
from rewardjax.models.multi_response import in_rows, pack
from rewardjax.models.transformer import TransformerConfig
from rewardjax.statistics import Mean

COLUMNS = ("prompt", "prompt_valid", "responses", "valid")


class Judge(NamedTuple):
    """What compares responses.

    Attributes:
      model: the network.
      logits: `(params, prompt, prompt_valid, responses, valid) -> [batch, n, n]`, 0 on the diagonal;
        prompts and responses as `models.multi_response` takes them.
      passes: how many rows go through the network to compare n responses with each other.
    """

    model: RewardModel
    logits: Callable[..., Float[Array, "batch n n"]]
    passes: Callable[[int], int]


def scalar_judge(config: TransformerConfig) -> Judge:
    """Bradley-Terry: a reward for each response, and differences of rewards."""
    model = RewardModel(config)

    def logits(
        params: Any,
        prompt: Int[Array, "batch prompt"],
        prompt_valid: Bool[Array, "batch prompt"],
        responses: Int[Array, "batch n time"],
        valid: Bool[Array, "batch n time"],
    ) -> Float[Array, "batch n n"]:
        tokens, held, _ = in_rows(prompt, prompt_valid, responses, valid)
        rewards = model.score(params, tokens, held)
        return rewards[..., :, None] - rewards[..., None, :]

    return Judge(model, logits, lambda n: n)


def general_judge(
    config: TransformerConfig,
    *,
    blocks: int,
    tau: float = 0.1,
    gated: bool = False,
    apart: bool = False,
) -> Judge:
    """GPM (arXiv:2410.02197): an embedding for each response, and `losses.preference_score / tau`.

    Args:
      config: of the backbone.
      blocks: half the width of the embedding.
      tau: temperature of the score.
      gated: the prompt's last state weights the blocks, by `blocks * softmax(logits / sqrt(width))`.
      apart: a response's tokens do not see the prompt's; only gates then depend on it.
    """
    outputs = 2 * blocks + (blocks if gated else 0)
    # A start at 0 would be a saddle of the bilinear score.
    model = RewardModel(config, outputs, bias=False, spread=1 / (config.width + 1))

    def logits(
        params: Any,
        prompt: Int[Array, "batch prompt"],
        prompt_valid: Bool[Array, "batch prompt"],
        responses: Int[Array, "batch n time"],
        valid: Bool[Array, "batch n time"],
    ) -> Float[Array, "batch n n"]:
        tokens, held, own = in_rows(prompt, prompt_valid, responses, valid)
        lead, time = tokens.shape[:2], tokens.shape[2]
        tokens, held, own = (x.reshape(-1, time) for x in (tokens, held, own))
        segments = held.astype(jnp.int32) + (own if apart else 0)
        states, _ = model.states(params, tokens, segments)
        read = model.read(params, states)
        embeddings, asked = (last_valid(read, x).reshape(*lead, -1) for x in (own, held & ~own))
        gates = None
        if gated:
            gates = asked[:, 0, 2 * blocks :] / config.width**0.5
            gates = blocks * jax.nn.softmax(gates, axis=-1)
        return losses.preference_table(embeddings[..., : 2 * blocks], gates) / tau

    return Judge(model, logits, lambda n: n)


def paired_judge(config: TransformerConfig, separator: int) -> Judge:
    """PairPM: reads two responses one behind the other, in a pass a pair; P is not antisymmetric."""
    model = RewardModel(config)

    def logits(
        params: Any,
        prompt: Int[Array, "batch prompt"],
        prompt_valid: Bool[Array, "batch prompt"],
        responses: Int[Array, "batch n time"],
        valid: Bool[Array, "batch n time"],
    ) -> Float[Array, "batch n n"]:
        batch, n, time = responses.shape
        first, second = np.nonzero(~np.eye(n, dtype=bool))

        def sides(x):
            return jnp.stack([x[:, first], x[:, second]], axis=2).reshape(-1, 2, time)

        asked, held = (jnp.repeat(x, first.size, axis=0) for x in (prompt, prompt_valid))
        row = pack(asked, held, sides(responses), sides(valid), separator)
        found = model.score(params, row.tokens, row.valid).reshape(batch, -1)
        return jnp.zeros((batch, n, n)).at[:, first, second].set(found)

    return Judge(model, logits, lambda n: n * (n - 1))


def comparing(judge: Judge) -> Callable[..., Loss]:
    """`-log P(first over second)` of each row's two responses: a loss of the supervised recipe.

    Asked in both orders, and halved: one number where P is antisymmetric.
    """

    def loss(params: Any, batch: dict[str, Array], frozen: Any = None) -> Loss:
        logits = judge.logits(params, *(batch[name] for name in COLUMNS))
        sides = logits[:, 0, 1], -logits[:, 1, 0]
        value = (losses.bradley_terry(sides[0]) + losses.bradley_terry(sides[1])) / 2
        return Loss({"preference": Mean.of(value)}, {"accuracy": Mean.of(sides[0] > 0)})

    return loss
