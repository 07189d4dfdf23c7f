"""Verifiers: language models with a scalar head that predicts whether a solution is correct.

The joint objective of arXiv:2110.14168 (App. E): squared error of the head on judged solutions plus
the language-modelling loss on the generator's own training data, which every batch holds beside them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rewardjax.data.sources import Source
from rewardjax.losses import Loss, squared_error
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.recipes.objectives import language_modelling
from rewardjax.statistics import Mean
from rewardjax.trajectory import last_step

# Of a mask of solutions' tokens, those after which a prediction is trained.
Judged = Callable[[Bool[Array, "batch time"]], Bool[Array, "batch time"]]


class VerifierStudy(NamedTuple):
    """What verifiers that are compared on the same solutions share.

    Attributes:
      backbone: a language model's parameters, from which they start.
      source: `(seed) -> Source` of batches as `verification_loss` reads them.
      evaluate: `params -> metrics` on held-out questions.
      show: `params -> rows` that a person can read.
      frozen: what an evaluation during training reads; None where there is none.
    """

    backbone: Any
    source: Callable[[int], Source]
    evaluate: Callable[[Any], dict[str, float]]
    show: Callable[[Any], list[dict]]
    frozen: Any = None


def token_level(mask: Bool[Array, "batch time"]) -> Bool[Array, "batch time"]:
    """A prediction after every token of the solution: a value function."""
    return mask


def solution_level(mask: Bool[Array, "batch time"]) -> Bool[Array, "batch time"]:
    """One prediction, after the last token of the solution."""
    return last_step(mask)


def predictions(
    model: RewardModel,
    params,
    tokens: Int[Array, "batch time"],
    valid: Bool[Array, "batch time"],
) -> Float[Array, "batch time"]:
    """The head's output after each token, that token seen; `model.score` is the last of these."""
    found: Any = model.module.apply({"params": params}, tokens, valid, method="steps")
    return found[..., 0]


def verification_loss(model: RewardModel, judged: Judged, language_weight: float = 1.0):
    """`(params, batch, frozen) -> Loss`: squared error to correctness, and language modelling.

    The batch has the judged solutions after their questions, `tokens`, `valid`, `mask` (on at the
    solution) `[batch, time]` and `correct` `[batch]` (1 or 0), and under `language` a batch of
    demonstrations as `language_modelling` takes it, with rows and columns of its own.

    Args:
      model: of one output.
      judged: after which tokens a prediction is trained; all of them weigh the same.
      language_weight: of the language-modelling loss; 0 leaves it out.
    """
    language = language_modelling(LanguageModel(model.config))

    def loss(params, batch, frozen=None):
        found = predictions(model, params, batch["tokens"], batch["valid"])
        target = jnp.broadcast_to(batch["correct"][:, None], found.shape)
        terms = {"verifier": squared_error(found, target, judged(batch["mask"]))}
        if language_weight:
            nll = language(params["backbone"], batch["language"]).terms["nll"]
            terms["language"] = nll.scale(language_weight)
        agrees = (found > 0.5) == (target > 0.5)
        return Loss(terms, {"accuracy": Mean.of(agrees, last_step(batch["mask"]))})

    return loss


def choice(model: RewardModel):
    """`(params, frozen, key) -> metrics`: how often the candidate with the highest score is correct.

    It reads `tokens` and `valid` `[questions * candidates, time]` and `correct`
    `[questions, candidates]` of `frozen`.
    """

    def evaluate(params, frozen, key):
        scores = model.score(params, frozen["tokens"], frozen["valid"])
        best = jnp.argmax(scores.reshape(frozen["correct"].shape), axis=1)
        chosen = jnp.take_along_axis(frozen["correct"], best[:, None], axis=1)
        return {"best_of_n": jnp.mean(chosen)}

    return evaluate
