"""Losses of the supervised recipe: what a batch means, and which primitive judges it.

A batch of preferences is a dict with `tokens`, `valid` and `mask` (on the response's tokens),
each `[batch, responses, time]`, and further columns such as `probability` `[batch]`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from rewardjax.losses import Loss, cross_entropy, log_ratio, squared_error
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel, gather_logprobs
from rewardjax.statistics import Mean

# Judges scores `[batch, responses]` given the batch's other columns; one loss a row.
ScoreLoss = Callable[[Float[Array, "batch responses"], dict[str, Array]], Float[Array, "batch"]]


# Of two distributions given by logits, first the reference's: one number a token.
Divergence = Callable[
    [Float[Array, "*shape vocabulary"], Float[Array, "*shape vocabulary"]], Float[Array, "*shape"]
]


def language_modelling(model: LanguageModel):
    """Next-token loss on `tokens` where `mask` is on; `segments` (or `valid`) separate documents."""

    def loss(params, batch, frozen=None):
        segments = batch.get("segments", batch["valid"].astype(jnp.int32))
        logprobs, entropy = model.score(params, batch["tokens"], segments)
        mask = batch["mask"] & (segments != 0)
        return Loss({"nll": cross_entropy(logprobs, mask)}, {"entropy": Mean.of(entropy, mask)})

    return loss


def reward_modelling(model: RewardModel, score_loss: ScoreLoss):
    """A loss on the scalar scores of each row's responses (Bradley-Terry, margins, ...).

    `weight` `[batch]`, if the batch has it, weights the rows: the loss is divided by the number of
    rows, not by the sum of the weights.
    """

    def loss(params, batch, frozen=None):
        scores = model.score(params, batch["tokens"], batch["valid"])
        values = score_loss(scores, batch)
        weight = batch.get("weight", jnp.ones_like(values))
        metrics = {
            "accuracy": Mean.of(scores[:, 0] > scores[:, 1]),
            "score_spread": Mean.of(jnp.std(scores, axis=1)),
        }
        return Loss({"preference": Mean.of(values * weight)}, metrics)

    return loss


def value_modelling(model: RewardModel):
    """Squared error of what the model's output says of every prefix.

    A batch is a dict of `tokens`, `valid`, `mask` and `target`, each `[batch, time]`.
    """

    def loss(params, batch, frozen=None) -> Loss:
        found = model.steps(params, batch["tokens"], batch["valid"])[..., 0]
        return Loss({"value": squared_error(found, batch["target"], batch["mask"])}, {})

    return loss


def direct_preference(
    model: LanguageModel, ratio_loss: ScoreLoss, divergence: Divergence | None = None
):
    """A loss on each response's log-ratio to a reference policy, `frozen` (DPO and its family).

    With a `divergence` such as `losses.full_kl`, the batch that `ratio_loss` sees has `divergence`
    `[batch, responses]` too: that of the reference from the policy at each token of the response,
    summed, in nats (with gradients).

    `token_weight` `[batch, responses, time]`, if the batch has it, weights the tokens in the log-ratios that
    `ratio_loss` sees: `sum_t w_t log (policy / reference)`. The metrics have them without weights.
    """

    def flat(batch):
        rows, responses, time = batch["tokens"].shape
        tokens, valid = (batch[k].reshape(-1, time) for k in ("tokens", "valid"))
        return (rows, responses, time), tokens, valid.astype(jnp.int32)

    def logits(params, batch):
        shape, tokens, segments = flat(batch)
        return model.logits(params, tokens, segments).reshape(*shape, -1)

    def score(params, batch):
        shape, tokens, segments = flat(batch)
        return model.score(params, tokens, segments)[0].reshape(shape)

    def loss(params, batch, frozen):
        if divergence is None:
            after, before = score(params, batch), score(frozen, batch)
        else:
            policy, reference = logits(params, batch), logits(frozen, batch)
            after, before = (gather_logprobs(x, batch["tokens"]) for x in (policy, reference))
        sides = {"log_ratio": log_ratio(after, before, batch["mask"])}
        if divergence is not None:
            by_token = jnp.where(batch["mask"], divergence(reference, policy), 0.0)
            sides["divergence"] = jnp.sum(by_token, axis=-1)
            batch = batch | {"divergence": sides["divergence"]}
        ratios = sides["log_ratio"]
        weighted = ratios
        if "token_weight" in batch:
            weight = batch["token_weight"]
            weighted = log_ratio(weight * after, weight * before, batch["mask"])
        metrics = {"accuracy": Mean.of(ratios[:, 0] > ratios[:, 1])}
        for name, values in sides.items():
            metrics[f"chosen_{name}"] = Mean.of(values[:, 0])
            metrics[f"rejected_{name}"] = Mean.of(values[:, 1])
        return Loss({"preference": Mean.of(ratio_loss(weighted, batch))}, metrics)

    return loss
