"""Variants of compared answers that stay in their class and mislead a reward model, or that are random."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.reward_guided import reward_guided_decode
from rewardjax.trajectory import Prompts

Pairs = dict[str, Array]  # `tokens` and `valid`, `[pairs, 2, time]`, the preferred answer first


@dataclasses.dataclass(frozen=True)
class ClassAttack:
    """Variants of both answers of a pair by language models of their classes (REFORM, arXiv:2507.06419).

    Its methods return `tokens` and `valid` of the variants, `[pairs, 2, time]`.

    Attributes:
      policy: how language models answer; `prompt_columns` are kept, all after them is written.
      scorer: the reward model, which has to score unfinished answers.
      top_k: candidates a token.
      alpha: weight of their log-probability, in the reward's unit per nat.
    """

    policy: LanguagePolicy
    scorer: RewardModel
    top_k: int
    alpha: float

    @property
    def model(self) -> LanguageModel:
        """The language model of either class."""
        return self.policy.model

    def guided(self, reward_model: Any, both: tuple[Any, Any], pairs: Pairs) -> Pairs:
        """Low rewards in the preferred class, high ones in the other.

        Args:
          reward_model: parameters of the scorer.
          both: parameters of the language models of the preferred class and of the other.
          pairs: the pairs to attack; their prompts are read.
        """

        def decode(params, tokens, valid, sign):
            return reward_guided_decode(
                lambda tokens, valid: self.model.logits(params, tokens, valid.astype(jnp.int32)),
                lambda tokens, valid: self.scorer.score(reward_model, tokens, valid),
                tokens,
                valid,
                start=self.policy.prompt_columns,
                top_k=self.top_k,
                alpha=self.alpha,
                sign=sign,
                stop=self.policy.stop[0],
            )

        tokens, valid = pairs["tokens"], pairs["valid"]
        found = [
            decode(params, tokens[:, side], valid[:, side], (-1.0, 1.0)[side])
            for side, params in enumerate(both)
        ]
        return _joined(found)

    def sampled(self, both: tuple[Any, Any], pairs: Pairs, key: Key[Array, ""]) -> Pairs:
        """Samples of each class's language model: no reward model has a say."""
        found = []
        for side, params in enumerate(both):
            tokens = pairs["tokens"][:, side, : self.policy.prompt_columns]
            asked = Prompts(tokens, jnp.ones_like(tokens, bool))
            traj = self.policy.rollout(params, asked, jax.random.fold_in(key, side))
            found.append((traj.tokens, traj.valid))
        return _joined(found)


def _joined(sides) -> Pairs:
    tokens, valid = (jnp.stack(x, axis=1) for x in zip(*sides, strict=True))
    return {"tokens": tokens, "valid": valid}
