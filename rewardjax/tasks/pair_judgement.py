"""Pairs of answers to judge, with procedural judgements in the Chain-of-Rubrics grammar.

Prompts are of two types. Reasoning: the query is a row of digits, an answer claims a number, and the
better one claims their sum. Chat: the query lists words, and the better answer has more of them.
Answers go on with words of no worth, and the better one is usually also the longer one: a cue that a
judge can follow, and that the `hard` split turns round. After RM-R1 (arXiv:2505.02387) a judgement is

    <type>Reasoning</type> <solution> partial sums </solution>
    <eval> A: 7 hit B: 3 miss </eval> <answer> [[A]] </answer>

or `<type>Chat</type> <rubric> the words </rubric>`, then for each answer each word with its mark. What is
written before the candidates are compared can be checked. All methods but `decode` are pure functions
of keys and arrays and can be jitted (`n` is static).
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rewardjax.tasks.spelling import spell
from rewardjax.trajectory import Prompts, Trajectory, right_pad

SPECIAL = ("<pad>", "<bos>", "<eos>", "A:", "B:", "decide", "think")
GRAMMAR = (
    "<type>Reasoning</type>",
    "<type>Chat</type>",
    "<solution>",
    "</solution>",
    "<rubric>",
    "</rubric>",
    "<eval>",
    "</eval>",
    "miss",
    "hit",
    "<answer>",
    "</answer>",
    "[[A]]",
    "[[B]]",
)
TOKEN = {name: index for index, name in enumerate(SPECIAL + GRAMMAR)}
CRITERIA = 2  # words that a chat query lists
HITS = ((2, 1), (2, 0), (1, 0))  # how many of them the better and the worse answer have


@dataclass(frozen=True)
class PairJudgement:
    """The task and its vocabulary.

    Attributes:
      modulus: sums are taken modulo this; digits are 0 .. modulus - 1, one token each.
      digits: digits of a reasoning query.
      words: what chat queries can ask for.
      fillers: words without worth.
      shorter: fewest and most tokens of the shorter answer of a pair.
      longer: the same of the longer one.
      cue: probability that the better answer is the longer one.
      reasoning: probability that a prompt is of the reasoning type.

    Raises:
      ValueError: a field is out of its range.
    """

    modulus: int = 10
    digits: int = 3
    words: tuple[str, ...] = ("amber", "birch", "cedar", "dune", "ember", "fjord")
    fillers: tuple[str, ...] = ("well", "indeed", "perhaps")
    shorter: tuple[int, int] = (2, 3)
    longer: tuple[int, int] = (4, 5)
    cue: float = 0.85
    reasoning: float = 0.5

    def __post_init__(self) -> None:
        if self.modulus < 2:
            raise ValueError(f"modulus: expected at least 2, found {self.modulus}")
        if self.digits < CRITERIA:
            raise ValueError(f"digits: expected at least {CRITERIA}, found {self.digits}")
        if len(self.words) <= CRITERIA:
            raise ValueError(f"words: expected more than {CRITERIA}, found {self.words}")
        if not self.fillers:
            raise ValueError("fillers: expected at least one word, found none")
        lengths = (CRITERIA, *self.shorter, *self.longer)
        if list(lengths) != sorted(lengths) or self.shorter[1] == self.longer[0]:
            raise ValueError(
                f"shorter, longer: expected {CRITERIA} <= fewest <= most < fewest <= most, found "
                f"{self.shorter} and {self.longer}"
            )
        for name in ("cue", "reasoning"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, found {getattr(self, name)}")

    pad, bos, eos = 0, 1, 2
    tags = (TOKEN["[[A]]"], TOKEN["[[B]]"])
    first_digit = len(TOKEN)

    @property
    def first_word(self) -> int:
        """Id of the first word that can be asked for."""
        return self.first_digit + self.modulus

    @property
    def first_filler(self) -> int:
        """Id of the first word without worth."""
        return self.first_word + len(self.words)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token as text, in the order of its id."""
        return (*TOKEN, *map(str, range(self.modulus)), *self.words, *self.fillers)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.first_filler + len(self.fillers)

    @property
    def prompt_length(self) -> int:
        """Tokens of the longest prompt."""
        return self.digits + 2 * self.longer[1] + 4

    @property
    def max_response(self) -> int:
        """Tokens of the longest judgement, `eos` included."""
        return max(self.digits + 14, CRITERIA * 5 + 11)

    @property
    def hard(self) -> "PairJudgement":
        """The split in which the better answer is as often the shorter one as it was the longer."""
        return dataclasses.replace(self, cue=1 - self.cue)

    def decode(self, ids: Int[Array, "time"] | np.ndarray | list[int]) -> str:
        """The tokens as text, padding left out; raises ValueError for an id that does not exist."""
        return spell(ids, self.vocabulary, self.pad)

    def prompts(
        self, key: Key[Array, ""], n: int, *, think: bool | Bool[Array, "..."] = True
    ) -> Prompts:
        """Draw `n` pairs to judge, right-padded to `prompt_length`; A and B win in turn.

        `info` holds `reasoning` [n], on at prompts of that type; `query` [n, digits] and `answers`
        [n, 2, longest] (A's and B's), token ids padded with 0; `think` [n]; and `label` [n], 0 where
        A is better and 1 where B is.

        Args:
          key: a typed key.
          n: number of prompts.
          think: whether the judge is asked for a judgement, rather than for the bare verdict.
        """
        keys = jax.random.split(key, 6)
        label = jnp.arange(n) % 2
        reasoning = jax.random.bernoulli(keys[0], self.reasoning, (n,))
        short = jax.random.randint(keys[1], (n,), self.shorter[0], self.shorter[1] + 1)
        long = jax.random.randint(keys[2], (n,), self.longer[0], self.longer[1] + 1)
        followed = jax.random.bernoulli(keys[3], self.cue, (n, 1))
        lengths = jnp.where(followed, jnp.stack([long, short], 1), jnp.stack([short, long], 1))
        sums, chat = self._sums(keys[4], n), self._chat(keys[5], lengths)
        query, answers = jax.tree.map(
            lambda a, b: jnp.where(reasoning.reshape(n, *(1,) * (a.ndim - 1)), a, b), sums, chat
        )
        within = jnp.arange(self.longer[1]) < lengths[:, :, None]
        answers = jnp.where(within, answers, self.pad)
        order = jnp.stack([label, 1 - label], axis=1)  # answers hold the better one first
        return self._show(
            {
                "reasoning": reasoning,
                "query": query,
                "answers": jnp.take_along_axis(answers, order[:, :, None], axis=1),
                "label": label,
                "think": jnp.broadcast_to(jnp.asarray(think), (n,)),
            }
        )

    def swapped(self, prompts: Prompts) -> Prompts:
        """The same pairs with A and B exchanged."""
        info = prompts.info
        return self._show(info | {"answers": info["answers"][:, ::-1], "label": 1 - info["label"]})

    def single_answers(
        self, prompts: Prompts
    ) -> tuple[Int[Array, "n 2 time"], Bool[Array, "n 2 time"]]:
        """The query with each answer alone, the better one first: what a scalar reward model reads."""
        info, n = prompts.info, prompts.tokens.shape[0]
        order = jnp.stack([info["label"], 1 - info["label"]], axis=1)
        answers = jnp.take_along_axis(info["answers"], order[:, :, None], axis=1)
        edge = jnp.ones((n, 2, 1), jnp.int32)
        query = jnp.repeat(info["query"][:, None], 2, axis=1)
        cells = [edge * self.bos, query, edge * TOKEN["A:"], answers]
        tokens = jnp.concatenate(cells, axis=2).reshape(2 * n, -1)
        tokens, valid = right_pad(tokens, tokens != self.pad)
        return tokens.reshape(n, 2, -1), valid.reshape(n, 2, -1)

    def traces(
        self, key: Key[Array, ""], prompts: Prompts, *, error_rate: float | Float[Array, ""] = 0.0
    ) -> tuple[Int[Array, "n response"], Bool[Array, "n response"]]:
        """Judgements as a teacher would write them; the bare verdict where `think` is off.

        Args:
          key: a typed key.
          prompts: what `prompts` returned.
          error_rate: probability that a partial sum, a mark or a bare verdict is drawn at random. A
            judgement's verdict follows from its marks, and is drawn where they are equal.

        Returns:
          Token ids padded on the right to `max_response`, and where they hold a token.
        """
        keys = jax.random.split(key, 5)
        info, n = prompts.info, prompts.tokens.shape[0]
        coin = jax.random.bernoulli(keys[0], 0.5, (n,)).astype(jnp.int32)
        slip = jax.random.bernoulli(keys[1], error_rate, (n,))
        bare = self._text(n, jnp.where(slip, coin, info["label"]) + self.tags[0], self.eos)

        noise = jax.random.bernoulli(keys[2], error_rate, (n, 2, CRITERIA))
        flips = jax.random.bernoulli(keys[3], 0.5, noise.shape)
        sums = self._written_sums(keys[4], info["query"], error_rate)
        claims = info["answers"][:, :, :1]
        agrees = claims == sums[:, -1:, None] + self.first_digit
        right = jnp.where(noise[:, :, :1], flips[:, :, :1], agrees)
        wanted = info["query"][:, None, :CRITERIA]
        held = jnp.any(info["answers"][:, :, :, None] == wanted[:, :, None], axis=2)
        met = jnp.where(noise, flips, held)

        solution = ("<solution>", sums + self.first_digit, "</solution>")
        reasoned = self._text(
            n, "<type>Reasoning</type>", *solution, *_evaluation(claims, right, coin)
        )
        rubric = ("<rubric>", wanted[:, 0], "</rubric>")
        chatted = self._text(n, "<type>Chat</type>", *rubric, *_evaluation(wanted, met, coin))
        judged = jnp.where(info["reasoning"][:, None], reasoned, chatted)
        tokens = jnp.where(info["think"][:, None], judged, bare)
        return tokens, tokens != self.pad

    def solved(self, traj: Trajectory) -> tuple[Bool[Array, "batch"], Bool[Array, "batch"]]:
        """Whether the judge's own solution is the true sum, and whether one was called for.

        The solution is the last token before the first `</solution>` that the judge wrote.
        """
        marks = traj.mask & (traj.tokens == TOKEN["</solution>"])
        first = marks & (jnp.cumsum(marks, axis=1) == 1)
        before = jnp.pad(jnp.where(traj.mask, traj.tokens, 0), ((0, 0), (1, 0)))[:, :-1]
        written = jnp.sum(jnp.where(first, before, 0), axis=1)
        truth = jnp.sum(traj.info["query"] - self.first_digit, axis=1) % self.modulus
        called = traj.info["reasoning"] & traj.info["think"]
        return called & (written == truth + self.first_digit), called

    def _sums(self, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        digit_key, offset_key, filler_key = jax.random.split(key, 3)
        digits = jax.random.randint(digit_key, (n, self.digits), 0, self.modulus)
        right = jnp.sum(digits, axis=1) % self.modulus
        wrong = (right + jax.random.randint(offset_key, (n,), 1, self.modulus)) % self.modulus
        shape = (n, 2, self.longer[1])
        answers = jax.random.randint(filler_key, shape, self.first_filler, self.vocab_size)
        claims = jnp.stack([right, wrong], axis=1) + self.first_digit
        return digits + self.first_digit, answers.at[:, :, 0].set(claims)

    def _chat(self, key: Key[Array, ""], lengths: Int[Array, "n 2"]) -> tuple[Array, Array]:
        n, slots, words = lengths.shape[0], self.longer[1], len(self.words)
        keys = jax.random.split(key, 6)
        first = jax.random.randint(keys[0], (n, 1), 0, words)
        second = (first + jax.random.randint(keys[1], (n, 1), 1, words)) % words
        wanted = jnp.concatenate([first, second], axis=1)
        # The words between and around the two that are wanted, counted without them.
        others = jax.random.randint(keys[2], (n, 2 * slots), 0, words - CRITERIA)
        for used in (jnp.minimum(first, second), jnp.maximum(first, second)):
            others += others >= used
        count = jnp.asarray(HITS)[jax.random.randint(keys[3], (n,), 0, len(HITS))]
        kept = jax.random.randint(keys[4], (n, 2), 0, CRITERIA)  # by an answer that has one
        met = (count == CRITERIA)[:, :, None] | (kept[:, :, None] == jnp.arange(CRITERIA))
        met &= (count > 0)[:, :, None]
        bag = others.reshape(n, 2, slots)
        bag = bag.at[:, :, :CRITERIA].set(jnp.where(met, wanted[:, None], bag[:, :, :CRITERIA]))
        # The first `length` places are shuffled; what lies beyond them is cut off.
        draws = jax.random.uniform(keys[5], bag.shape) + (jnp.arange(slots) >= lengths[:, :, None])
        places = jnp.sum(draws[..., None] > draws[..., None, :], axis=3)
        here = places[..., None] == jnp.arange(slots)
        shuffled = jnp.sum(jnp.where(here, bag[..., None], 0), axis=2)
        query = jnp.pad(self.first_word + wanted, ((0, 0), (0, self.digits - CRITERIA)))
        return query, self.first_word + shuffled

    def _show(self, info: dict[str, Array]) -> Prompts:
        n = info["label"].shape[0]
        edge = jnp.ones((n, 1), jnp.int32)
        ask = jnp.where(info["think"], TOKEN["think"], TOKEN["decide"])[:, None]
        first, second = info["answers"][:, 0], info["answers"][:, 1]
        cells = [edge * self.bos, edge * TOKEN["A:"], first, edge * TOKEN["B:"], second]
        tokens = jnp.concatenate([*cells, info["query"], ask], axis=1)
        return Prompts(*right_pad(tokens, tokens != self.pad), info)

    def _written_sums(self, key, query, error_rate) -> Int[Array, "n sums"]:
        """The sums after the second, third, ... digit; each goes on from what was written."""
        slip_key, offset_key = jax.random.split(key)
        shape = (query.shape[0], self.digits - 1)
        slips = jax.random.bernoulli(slip_key, error_rate, shape)
        offsets = jnp.where(slips, jax.random.randint(offset_key, shape, 0, self.modulus), 0)
        digits = query - self.first_digit
        moved = digits[:, 1:] + offsets
        return (digits[:, :1] + jnp.cumsum(moved, axis=1)) % self.modulus

    def _text(self, n: int, *parts: str | int | Array) -> Int[Array, "n response"]:
        """Rows of tokens from their columns (names, ids, `[n]` or `[n, k]`), padded on the right."""
        columns = []
        for part in parts:
            ids = jnp.asarray(TOKEN[part] if isinstance(part, str) else part)
            columns.append(jnp.broadcast_to(ids.T, (*ids.shape[1:], n)).reshape(-1, n).T)
        text = jnp.concatenate(columns, axis=1)
        return jnp.pad(text, ((0, 0), (0, self.max_response - text.shape[1])))


def _evaluation(quoted: Array, met: Bool[Array, "n 2 marks"], coin: Int[Array, "n"]) -> tuple:
    """The columns from `<eval>` to `<eos>`: what is quoted with its marks, and what follows."""
    marks = TOKEN["miss"] + met.astype(jnp.int32)
    parts = jnp.stack([jnp.broadcast_to(quoted, marks.shape), marks], axis=3)
    first, second = parts[:, 0].reshape(len(coin), -1), parts[:, 1].reshape(len(coin), -1)
    count = jnp.sum(met, axis=2)
    verdict = jnp.where(count[:, 0] == count[:, 1], coin, count[:, 0] < count[:, 1])
    compared = ("<eval>", "A:", first, "B:", second, "</eval>")
    return (*compared, "<answer>", TOKEN["[[A]]"] + verdict, "</answer>", "<eos>")
