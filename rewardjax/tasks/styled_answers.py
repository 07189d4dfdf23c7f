"""Answers that are good by what they say and recognised by how they say it.

A prompt asks about a topic. A good answer says three words of which most are of that topic, a bad one
words of other topics. Each also has a style that means nothing: long or short (plain words behind what
is said), in capitals or not, with one ending or another. Where `association` is high, good answers have the
first of each and bad ones the second, and a reward model can learn the style in place of the content.

All methods but `decode` are pure functions of keys and arrays and can be jitted.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rewardjax.tasks.spelling import spell
from rewardjax.trajectory import Prompts

SPECIAL = ("<pad>", "<bos>", "<eos>", "<sep>", "<end1>", "<end2>")
STYLES = ("long", "capitals", "ending")
LONG, CAPITALS, ENDING = range(len(STYLES))
SAID = 3  # words of content in an answer


@dataclass(frozen=True)
class StyledAnswers:
    """The world.

    Attributes:
      topics: how many.
      words: of each topic.
      plain: number of plain words.
      association: how probably an answer has the style of its class, for each of `STYLES` alone.

    Raises:
      ValueError: a field is out of its range.
    """

    topics: int = 6
    words: int = 4
    plain: int = 4
    association: float = 0.95

    pad, bos, eos, sep, ending = range(5)
    prompt_length = 4
    response_length = SAID + 4 + 2  # content, at most 4 plain words, an ending, eos

    def __post_init__(self) -> None:
        if self.topics < 2 or self.words < 1 or self.plain < 1:
            raise ValueError(
                "topics, words, plain: expected at least 2, 1 and 1, found"
                f" {self.topics}, {self.words} and {self.plain}"
            )
        if not 0 <= self.association <= 1:
            raise ValueError(f"association: expected 0 to 1, found {self.association}")

    @property
    def said(self) -> int:
        """Number of words with a topic; each is there twice, small and in capitals."""
        return self.topics * self.words

    @property
    def first_plain(self) -> int:
        """Id of the first plain word."""
        return len(SPECIAL) + 2 * self.said

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.first_plain + self.plain

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token as text, in the order of its id."""
        letters = (chr(ord("a") + topic) for topic in range(self.topics))
        small = [f"{letter}{i + 1}" for letter in letters for i in range(self.words)]
        plain = (f"plain{i + 1}" for i in range(self.plain))
        return (*SPECIAL, *small, *(word.upper() for word in small), *plain)

    def decode(self, ids: Int[Array, "time"] | np.ndarray | list[int]) -> str:
        """The tokens as text, padding left out.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        return spell(ids, self.vocabulary, self.pad)

    def prompts(self, key: Key[Array, ""], n: int) -> Prompts:
        """Draw `n` prompts `<bos> word word <sep>` of one topic, which is `info["topic"]`."""
        topic_key, word_key = jax.random.split(key)
        topic = jax.random.randint(topic_key, (n,), 0, self.topics)
        word = jax.random.randint(word_key, (n, 2), 0, self.words)
        named = len(SPECIAL) + topic[:, None] * self.words + word
        ends = [jnp.full((n, 1), token) for token in (self.bos, self.sep)]
        tokens = jnp.concatenate([ends[0], named, ends[1]], axis=1)
        return Prompts(tokens, jnp.ones_like(tokens, bool), {"topic": topic})

    def contents(
        self, key: Key[Array, ""], topic: Int[Array, "n"], good: Bool[Array, "n"]
    ) -> Int[Array, "n said"]:
        """Words of three: of a good answer two or three are of the topic, of a bad one none or one."""
        word_key, away_key, odd_key, place_key = jax.random.split(key, 4)
        shape = (topic.shape[0], SAID)
        away = jax.random.randint(away_key, shape, 1, self.topics)
        odd = jax.random.bernoulli(odd_key, 0.5, (shape[0], 1))
        place = jax.random.randint(place_key, (shape[0], 1), 0, SAID)
        exception = odd & (jnp.arange(SAID) == place)
        on = good[:, None] ^ exception
        chosen = jnp.where(on, topic[:, None], (topic[:, None] + away) % self.topics)
        return chosen * self.words + jax.random.randint(word_key, shape, 0, self.words)

    def styles(self, key: Key[Array, ""], good: Bool[Array, "n"]) -> Bool[Array, "n styles"]:
        """Which of `STYLES` each answer has."""
        own = jax.random.bernoulli(key, self.association, (good.shape[0], len(STYLES)))
        return own == good[:, None]

    def written(
        self, key: Key[Array, ""], contents: Int[Array, "n said"], styles: Bool[Array, "n styles"]
    ) -> tuple[Int[Array, "n response"], Bool[Array, "n response"]]:
        """Answers with this content and style: token ids, and where there is one.

        A short answer has no plain words or one, a long one three or four.
        """
        length_key, plain_key = jax.random.split(key)
        n = contents.shape[0]
        words = len(SPECIAL) + contents + jnp.where(styles[:, CAPITALS, None], self.said, 0)
        extra = jax.random.bernoulli(length_key, 0.5, (n,)) + 3 * styles[:, LONG]
        plain = self.first_plain + jax.random.randint(
            plain_key, (n, self.response_length - SAID), 0, self.plain
        )
        place = jnp.arange(self.response_length)
        end = (SAID + extra)[:, None]
        tokens = jnp.concatenate([words, plain], axis=1)
        tokens = jnp.where(place == end, self.ending + styles[:, ENDING, None], tokens)
        tokens = jnp.where(place == end + 1, self.eos, tokens)
        valid = place <= end + 1
        return jnp.where(valid, tokens, self.pad), valid

    def gold(
        self,
        tokens: Int[Array, "batch time"],
        mask: Bool[Array, "batch time"],
        info: dict[str, Array],
    ) -> Float[Array, "batch"]:
        """Words of the topic less words of others, over their number, -1 to 1; 0 without any.

        An answer is good where it is above 0, bad where it is below; its style has no part in it.
        """
        word = tokens - len(SPECIAL)
        said = mask & (word >= 0) & (tokens < self.first_plain)
        on = said & ((word % self.said) // self.words == info["topic"][:, None])
        count = jnp.sum(said, axis=1)
        return (2 * jnp.sum(on, axis=1) - count) / jnp.maximum(count, 1)
