"""Labels of real text that an ensemble votes on, and heads trained on what is made of them."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rewardjax.evaluation.stated_preferences import labels_of
from rewardjax.losses.denoising import preference_strength
from rewardjax.recipes.text_pairs import SCALAR, Shared, TextPairs
from rewardjax.training.run import Run

# Of pairs by their strength: the probability that the label's response is the better one.
Label = Callable[[Float[Array, "pairs"]], Float[Array, "pairs"]]


class Voted(NamedTuple):
    """What the arms of a seed share.

    Attributes:
      shared: records and backbone.
      strength: of each training record, towards the response that its label prefers.
    """

    shared: Shared
    strength: np.ndarray


class TextVotes:
    """Bradley-Terry heads that learned the same pairs in other orders vote on their labels.

    Args:
      study: data and backbone.
      members: of the ensemble.
    """

    def __init__(self, study: TextPairs, members: int):
        self.study, self.members = study, members

    def prepare(self) -> Callable[[Run], Voted]:
        """`run -> Voted`."""
        make, fit = self.study.prepare(), self.study.fitting(SCALAR)

        def run_seed(run: Run) -> Voted:
            shared, rng = make(run), np.random.default_rng(run.seed)
            differences = []
            for number in range(self.members):
                order = rng.permutation(len(shared.train))
                logits = fit(run.stage(f"vote_{number}"), _ordered(shared, order))
                differences.append(logits("train")[np.argsort(order)])
            sides = np.where(labels_of(shared.train) >= 0.5, 1.0, -1.0)
            mean, _ = preference_strength(jnp.asarray(np.stack(differences) * sides))
            return Voted(shared, np.asarray(mean))

        return run_seed

    def arm(self, label: Label) -> Callable[[Run, Voted], dict[str, float]]:
        """`(run, voted) -> metrics` of a head on labels that are softened, or turned round."""
        return self.study.arm(SCALAR, lambda voted: relabelled(voted, label))


def relabelled(voted: Voted, label: Label) -> Shared:
    """What is shared, with training labels p that became `q p + (1 - q) (1 - p)`, q = `label(strength)`."""
    q = np.asarray(label(jnp.asarray(voted.strength)))
    p = labels_of(voted.shared.train)
    records = [
        dataclasses.replace(record, probability=float(x))
        for record, x in zip(voted.shared.train, q * p + (1 - q) * (1 - p))
    ]
    return voted.shared._replace(train=records)


def _ordered(shared: Shared, order: np.ndarray) -> Shared:
    records = [shared.train[i] for i in order]
    if shared.features is None:
        return shared._replace(train=records)
    features = {**shared.features, "train": shared.features["train"][order]}
    return shared._replace(train=records, features=features)
