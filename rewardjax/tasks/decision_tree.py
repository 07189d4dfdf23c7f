"""Responses in which a few known tokens decide and all others are free wording.

A prompt is `bos key key key ?`: each decision has a key, from tokens of its own, and a hidden rule
that says which choice is right under which key. A response has `length` tokens, the last one `eos`:
at each of the positions `decisions` stands a choice, everywhere else a word without effect. It is
right if all its choices are. All methods but `decode` are pure functions of keys and arrays and can
be jitted.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rewardjax.tasks.spelling import spell
from rewardjax.trajectory import Prompts, Trajectory

SPECIAL = ("<pad>", "<bos>", "<eos>", "?")


@dataclass(frozen=True)
class DecisionTree:
    """The task and its vocabulary.

    Attributes:
      choices: how many choices a decision has, and how many keys; a rule maps one onto the other.
      decisions: positions of the deciding tokens in the response, from 0, ascending.
      length: tokens of a response, `eos` included.
      words: how many words without effect there are.
      rule_seed: draws the hidden rules.

    Raises:
      ValueError: a field is out of its range.
    """

    choices: int = 4
    decisions: tuple[int, ...] = (2, 5, 8)
    length: int = 12
    words: int = 4
    rule_seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"choices": 2, "length": 2, "words": 2}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        within = set(self.decisions) <= set(range(self.length - 1))
        if not self.decisions or not within or list(self.decisions) != sorted(set(self.decisions)):
            raise ValueError(
                f"decisions: expected one or more ascending positions from 0 to {self.length - 2}, "
                f"found {self.decisions}"
            )

    pad = 0
    bos = 1
    eos = 2
    question = 3
    first_key = len(SPECIAL)

    @property
    def first_choice(self) -> int:
        """Id of the first choice, behind the keys of all decisions; then come the words."""
        return self.first_key + len(self.decisions) * self.choices

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.first_choice + self.choices + self.words

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt."""
        return len(self.decisions) + 2

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token as text, in the order of its id."""
        letters = (chr(ord("a") + i) for i in range(len(self.decisions)))
        keys = tuple(f"{letter}{key}" for letter in letters for key in range(self.choices))
        choices = tuple(f"go{choice}" for choice in range(self.choices))
        return SPECIAL + keys + choices + tuple(f"word{word}" for word in range(self.words))

    @property
    def table(self) -> Int[np.ndarray, "decisions keys"]:
        """The right choice of each decision under each key; each row is a permutation."""
        ordered = np.tile(np.arange(self.choices, dtype=np.int32), (len(self.decisions), 1))
        return np.random.default_rng(self.rule_seed).permuted(ordered, axis=1)

    def decode(self, ids: Int[Array, "time"] | np.ndarray | list[int]) -> str:
        """The tokens as text, padding left out; raises ValueError for an id that does not exist."""
        return spell(ids, self.vocabulary, self.pad)

    def prompts(self, key: Key[Array, ""], n: int) -> Prompts:
        """Draw `n` prompts of `prompt_length` tokens; `info["right"]` [n, decisions] counts from 0."""
        count = len(self.decisions)
        keys = jax.random.randint(key, (n, count), 0, self.choices)
        edge = jnp.ones((n, 1), jnp.int32)
        shown = self.first_key + self.choices * jnp.arange(count) + keys
        tokens = jnp.concatenate([edge * self.bos, shown, edge * self.question], axis=1)
        right = jnp.asarray(self.table)[jnp.arange(count), keys]
        return Prompts(tokens, jnp.ones_like(tokens, bool), {"right": right})

    def demonstrations(
        self,
        key: Key[Array, ""],
        prompts: Prompts,
        *,
        accuracy: float | Float[Array, ""] = 1.0,
        paraphrase: float | Float[Array, ""] = 0.0,
    ) -> tuple[Int[Array, "n response"], Bool[Array, "n response"]]:
        """Responses as a teacher would write them: token ids and where they hold a token.

        Args:
          key: a typed key.
          prompts: what `prompts` returned.
          accuracy: probability that a choice is right; a wrong one is uniform over the others.
          paraphrase: probability that a word is another one than the usual of its position.
        """
        slip_key, offset_key, change_key, word_key = jax.random.split(key, 4)
        right = prompts.info["right"]
        slips = ~jax.random.bernoulli(slip_key, accuracy, right.shape)
        offsets = jnp.where(slips, jax.random.randint(offset_key, right.shape, 1, self.choices), 0)
        shape = (right.shape[0], self.length)
        changes = jax.random.bernoulli(change_key, paraphrase, shape)
        others = jax.random.randint(word_key, shape, 1, self.words)
        words = (jnp.arange(self.length) + jnp.where(changes, others, 0)) % self.words
        tokens = (self.first_choice + self.choices + words).at[:, -1].set(self.eos)
        choices = self.first_choice + (right + offsets) % self.choices
        tokens = tokens.at[:, jnp.asarray(self.decisions)].set(choices)
        return tokens, jnp.ones_like(tokens, bool)

    def judge(
        self, traj: Trajectory
    ) -> tuple[Bool[Array, "batch time"], Bool[Array, "batch time"]]:
        """The deciding steps whose choice is that of `traj.info["right"]`, and the other ones."""
        order = jnp.cumsum(traj.mask, axis=1) - 1
        deciding = traj.mask & jnp.isin(order, jnp.asarray(self.decisions))
        index = jnp.maximum(jnp.cumsum(deciding, axis=1) - 1, 0)
        wanted = self.first_choice + jnp.take_along_axis(traj.info["right"], index, axis=1)
        return deciding & (traj.tokens == wanted), deciding & (traj.tokens != wanted)

    def verify(self, traj: Trajectory) -> Float[Array, "batch"]:
        """1 where every decision was taken and is right, else 0; words and `eos` do not matter."""
        right, _ = self.judge(traj)
        return (jnp.sum(right, axis=1) == len(self.decisions)).astype(jnp.float32)
