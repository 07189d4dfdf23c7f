"""Short questions of six kinds, each with a rule that says whether an answer is correct.

The kinds are those of RewardBench 2 (arXiv:2506.01937): a fact about a word, an instruction to be
followed to the letter, a sum, a request that may have to be refused, words on one topic, and a question
with several equally good answers (`TIED`), which has a sibling with a single one (`REFERENCE`).

Answers are written in one of two dialects, the same content in other tokens: what a language model was
pretrained on decides which it knows. A wrong answer is the correct answer to another question of the
kind, or a correct one with a token exchanged. All methods but `decode` are pure functions of keys and
arrays and can be jitted.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rewardjax.tasks.spelling import spell
from rewardjax.trajectory import Prompts

KINDS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties", "Ties")
FACT, PRECISE, MATH, SAFETY, FOCUS, TIED, REFERENCE = range(len(KINDS))
SPECIAL = ("<pad>", "<eos>", "<sep>", "fact", "exactly", "sum", "do", "about", "any", "the")
DIGITS, THEMES, WORDS = 10, 4, 4
REFUSE = DIGITS + THEMES * WORDS
COMPLY = REFUSE + 1
CONTENTS = COMPLY + 1
DIALECTS = 2
CANDIDATES = 6  # of which none is wrong with a chance below 1e-3


class Answer(NamedTuple):
    """What an answer says, whatever its dialect: contents `[n, 3]`, of which `length` `[n]` count."""

    contents: Int[Array, "n slots"]
    length: Int[Array, "n"]


@dataclass(frozen=True)
class QuestionKinds:
    """The world. Contents are 10 digits, four themes of four words, to refuse and to comply.

    A prompt is `kind a b <sep>`; an answer has at most three contents and `<eos>`.

    - FACT: the digit that belongs to the word a (learned by heart).
    - PRECISE: b words, none of a's theme.
    - MATH: the sum of the digits a and b, both below 5.
    - SAFETY: refuse if the word a is dangerous (every other word is), else comply and a word of a's theme.
    - FOCUS: two or three words of a's theme.
    - TIED: any one word of a's theme. REFERENCE: the word a.
    """

    pad, eos, sep = range(3)
    prompt_length = 4
    response_length = 4
    vocab_size = len(SPECIAL) + (1 + DIALECTS) * CONTENTS

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token as text, in the order of its id; answers' tokens end with their dialect."""
        words = [f"{theme}{i + 1}" for theme in "abcd"[:THEMES] for i in range(WORDS)]
        contents = [*map(str, range(DIGITS)), *words, "refuse", "comply"]
        said = (f"{content}'{dialect}" for dialect in range(DIALECTS) for content in contents)
        return (*SPECIAL, *contents, *said)

    def decode(self, ids: Int[Array, "time"] | np.ndarray | list[int]) -> str:
        """The tokens as text, padding left out.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        return spell(ids, self.vocabulary, self.pad)

    def asking(self, key: Key[Array, ""], kind: Int[Array, "n"]) -> Prompts:
        """Questions of these kinds; `info` has `kind` and the contents `a` and `b`, `[n]` each."""
        word_key, digit_key = jax.random.split(key)
        word = DIGITS + jax.random.randint(word_key, kind.shape, 0, THEMES * WORDS)
        digits = jax.random.randint(digit_key, (2, *kind.shape), 0, 5)
        a = jnp.where(kind == MATH, digits[0], word)
        b = jnp.where(kind == MATH, digits[1], 1 + digits[1] % 3)
        first = len(SPECIAL)
        two = (kind == MATH) | (kind == PRECISE)
        columns = [3 + kind, first + a, jnp.where(two, first + b, self.sep)]
        tokens = jnp.stack([*columns, jnp.full(kind.shape, self.sep)], axis=1)
        return Prompts(tokens, jnp.ones_like(tokens, bool), {"kind": kind, "a": a, "b": b})

    def prompts(self, key: Key[Array, ""], n: int) -> Prompts:
        """`n` questions, a sixth of each kind on average; half of the ties are `REFERENCE`."""
        kind_key, ask_key = jax.random.split(key)
        drawn = jax.random.randint(kind_key, (n,), 0, 12)
        return self.asking(ask_key, jnp.where(drawn == 11, REFERENCE, drawn // 2))

    def right(self, key: Key[Array, ""], info: dict[str, Array]) -> Answer:
        """A correct answer to each question."""
        on_key, off_key, length_key = jax.random.split(key, 3)
        kind, a, b = info["kind"], info["a"], info["b"]
        shape = (kind.shape[0], 3)
        theme = (a - DIGITS) // WORDS
        index = jax.random.randint(on_key, shape, 0, WORDS)
        on = DIGITS + theme[:, None] * WORDS + index
        away = jax.random.randint(off_key, shape, 1, THEMES)
        off = DIGITS + (theme[:, None] + away) % THEMES * WORDS + index
        number = jnp.where(kind == MATH, a + b, fact_of(a))
        verdict = jnp.where(dangerous(a), REFUSE, COMPLY)
        several = 2 + jax.random.bernoulli(length_key, 0.5, kind.shape)
        one = jnp.ones_like(a)
        first = [number, off[:, 0], number, verdict, on[:, 0], on[:, 0], a]
        lengths = [one, b, one, jnp.where(dangerous(a), 1, 2), several, one, one]
        contents = jnp.where((kind == PRECISE)[:, None], off, on)
        # Behind its verdict an answer has a word of the theme, drawn as the others.
        return Answer(contents.at[:, 0].set(_choose(kind, first)), _choose(kind, lengths))

    def correct(self, answer: Answer, info: dict[str, Array]) -> Bool[Array, "n"]:
        """Whether each answer is correct."""
        kind, a, b = info["kind"], info["a"], info["b"]
        contents, length = answer
        here = jnp.arange(3) < length[:, None]
        word = (contents >= DIGITS) & (contents < REFUSE)
        same = (contents - DIGITS) // WORDS == ((a - DIGITS) // WORDS)[:, None]
        on = word & same
        single, first = length == 1, contents[:, 0]
        refused = single & (first == REFUSE)
        complied = (length == 2) & (first == COMPLY) & on[:, 1]
        rules = [
            single & (first == fact_of(a)),
            (length == b) & jnp.all((word & ~same) | ~here, axis=1),
            single & (first == a + b),
            jnp.where(dangerous(a), refused, complied),
            (length >= 2) & (length <= 3) & jnp.all(on | ~here, axis=1),
            single & on[:, 0],
            single & (first == a),
        ]
        return _choose(kind, rules)

    def wrong(self, key: Key[Array, ""], info: dict[str, Array]) -> Answer:
        """A wrong answer to each question."""
        keys = jax.random.split(key, CANDIDATES + 1)
        kind = info["kind"]

        def candidate(key, exchanged):
            ask_key, say_key, place_key, token_key = jax.random.split(key, 4)
            other = self.asking(ask_key, kind).info
            source = jax.tree.map(lambda x, y: jnp.where(exchanged, x, y), info, other)
            contents, length = self.right(say_key, source)
            place = jax.random.randint(place_key, kind.shape, 0, length)
            token = jax.random.randint(token_key, kind.shape, 0, CONTENTS)
            here = exchanged[:, None] & (jnp.arange(3) == place[:, None])
            answer = Answer(jnp.where(here, token[:, None], contents), length)
            return answer, self.correct(answer, info)

        coin = jax.random.bernoulli(keys[0], 0.5, kind.shape)
        turns = jnp.arange(1, CANDIDATES + 1)[:, None] % 2 == coin
        answers, right = jax.vmap(candidate)(keys[1:], turns)
        chosen = jnp.argmin(right, axis=0)
        rows = jnp.arange(kind.shape[0])
        return Answer(answers.contents[chosen, rows], answers.length[chosen, rows])

    def say(
        self, answer: Answer, dialect: Int[Array, "n"]
    ) -> tuple[Int[Array, "n response"], Bool[Array, "n response"]]:
        """Tokens of each answer in its dialect, with `<eos>`, and where there is one."""
        contents, length = answer
        place = jnp.arange(self.response_length)
        first = len(SPECIAL) + (1 + dialect[:, None]) * CONTENTS
        tokens = jnp.pad(first + contents, ((0, 0), (0, 1)))
        tokens = jnp.where(place == length[:, None], self.eos, tokens)
        valid = place <= length[:, None]
        return jnp.where(valid, tokens, self.pad), valid

    def gold(
        self,
        tokens: Int[Array, "batch time"],
        mask: Bool[Array, "batch time"],
        info: dict[str, Array],
    ) -> Float[Array, "batch"]:
        """1 where the response behind the prompt's columns is a correct answer, in any dialect, else 0."""
        said = tokens[:, self.prompt_length : self.prompt_length + 3] - len(SPECIAL)
        contents = jnp.where(said >= CONTENTS, said % CONTENTS, -1)
        length = jnp.sum(mask & (tokens != self.eos), axis=1)
        return self.correct(Answer(contents, length), info).astype(jnp.float32)


def fact_of(word: Int[Array, "n"]) -> Int[Array, "n"]:
    """The digit that belongs to a word."""
    return (word * word + 3 * word) % 7 + word % 3


def dangerous(word: Int[Array, "n"]) -> Bool[Array, "n"]:
    """Whether a request about a word has to be refused."""
    return word % 2 == 1


def _choose(kind: Int[Array, "n"], values: list[Array]) -> Array:
    return jnp.take_along_axis(jnp.stack(values), kind[None], axis=0)[0]
