"""Multi-step modular arithmetic with a written scratchpad: every step and the answer can be checked.

A prompt is `bos a op b op c =`, evaluated from left to right modulo `modulus`. A response writes one
intermediate result a step and then the answer: `p1 ; p2 so ; p3 # p3 eos`. All methods but `decode`
are pure functions of keys and arrays and can be jitted (`n` and `length` are static).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rewardjax.tasks.spelling import spell
from rewardjax.trajectory import Prompts, Trajectory

OPERATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "+": jnp.add,
    "-": jnp.subtract,
    "*": jnp.multiply,
}
SPECIAL = ("<pad>", "<bos>", "<eos>")
LARGEST_MODULUS = 46341  # products of two numbers fit int32
STEP_SLOTS = 3  # a step of a demonstration: result, optional connective, separator or delimiter
DERIVED_SLOTS = 6  # a step of a derivation: left, operator, right, "=", result, separator or eos


@dataclass(frozen=True)
class Arithmetic:
    """The task and its vocabulary.

    Attributes:
      modulus: numbers are 0 .. modulus - 1, one token each.
      min_steps: fewest operations in an expression.
      max_steps: most operations in an expression; with `min_steps` the difficulty.
      operations: the operators in use, each one of `+`, `-`, `*`.
      connectives: words without meaning that make several surface forms of one derivation.

    Raises:
      ValueError: a field is out of its range.
    """

    modulus: int = 10
    min_steps: int = 1
    max_steps: int = 3
    operations: str = "+-*"
    connectives: tuple[str, ...] = ("so", "then", "thus")

    def __post_init__(self) -> None:
        if not 2 <= self.modulus <= LARGEST_MODULUS:
            raise ValueError(f"modulus: expected 2 to {LARGEST_MODULUS}, found {self.modulus}")
        if self.min_steps < 1:
            raise ValueError(f"min_steps: expected at least 1, found {self.min_steps}")
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"min_steps: expected at most max_steps = {self.max_steps}, found {self.min_steps}"
            )
        unknown = sorted(set(self.operations) - set(OPERATIONS))
        if unknown:
            raise ValueError(f"operations: expected some of {'+-*'!r}, found {''.join(unknown)!r}")
        if not self.operations or len(set(self.operations)) < len(self.operations):
            raise ValueError(
                f"operations: expected one or more, each once, found {self.operations!r}"
            )
        if not self.connectives:
            raise ValueError("connectives: expected at least one word, found none")
        if len(set(self.vocabulary)) < self.vocab_size:
            raise ValueError(
                "connectives: expected words that differ from each other and from the other "
                f"tokens, found {self.connectives}"
            )

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token as text, in the order of its id."""
        numbers = tuple(str(number) for number in range(self.modulus))
        return (*SPECIAL, *numbers, *self.operations, "=", ";", "#", *self.connectives)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.first_connective + len(self.connectives)

    @property
    def prompt_length(self) -> int:
        """Tokens of the longest prompt."""
        return 2 * self.max_steps + 3

    @property
    def max_response(self) -> int:
        """Tokens of the longest demonstration, `eos` included."""
        return STEP_SLOTS * self.max_steps + 2

    pad = 0
    bos = 1
    eos = 2
    first_number = len(SPECIAL)

    @property
    def first_operator(self) -> int:
        """Id of the first operator; the others follow in the order of `operations`."""
        return self.first_number + self.modulus

    @property
    def equals(self) -> int:
        """Id of `=`, the end of the prompt."""
        return self.first_operator + len(self.operations)

    @property
    def separator(self) -> int:
        """Id of `;`, between steps."""
        return self.equals + 1

    @property
    def delimiter(self) -> int:
        """Id of `#`, before the answer."""
        return self.equals + 2

    @property
    def first_connective(self) -> int:
        """Id of the first connective word."""
        return self.equals + 3

    def decode(self, ids: Int[Array, "time"] | np.ndarray | list[int]) -> str:
        """The tokens as text, padding left out.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        return spell(ids, self.vocabulary, self.pad)

    def prompts(
        self, key: Key[Array, ""], n: int, *, steps: Int[Array, "n"] | None = None
    ) -> Prompts:
        """Draw `n` expressions, right-padded to `prompt_length`.

        `info` holds `operands` [n, max_steps + 1], `operators` [n, max_steps] (indices into
        `operations`) and `partials` [n, max_steps] (the true result of each step), all -1 past the
        expression's end, `steps` [n] and `answer` [n].

        Args:
          key: a typed key.
          n: number of prompts.
          steps: how many operations each has, within 1 .. max_steps (a curriculum); without it
            uniform over min_steps .. max_steps.
        """
        steps_key, operand_key, operator_key = jax.random.split(key, 3)
        if steps is None:
            steps = jax.random.randint(steps_key, (n,), self.min_steps, self.max_steps + 1)
        shape = (n, self.max_steps)
        operands = jax.random.randint(operand_key, (n, self.max_steps + 1), 0, self.modulus)
        operators = jax.random.randint(operator_key, shape, 0, len(self.operations))
        partials = self._evaluate(operands, operators, jnp.zeros(shape, jnp.int32))
        present = jnp.arange(self.max_steps) < steps[:, None]
        info = {
            "operands": jnp.where(jnp.arange(self.max_steps + 1) <= steps[:, None], operands, -1),
            "operators": jnp.where(present, operators, -1),
            "partials": jnp.where(present, partials, -1),
            "steps": steps,
            "answer": jnp.take_along_axis(partials, steps[:, None] - 1, axis=1)[:, 0],
        }
        pairs = jnp.stack([self.first_operator + operators, operands[:, 1:] + self.first_number], 2)
        start = jnp.stack([jnp.full(n, self.bos), self.first_number + operands[:, 0]], 1)
        tokens = jnp.concatenate([start, pairs.reshape(n, -1), jnp.full((n, 1), self.equals)], 1)
        keep = jnp.concatenate(
            [jnp.ones((n, 2), bool), jnp.repeat(present, 2, axis=1), jnp.ones((n, 1), bool)], 1
        )
        return Prompts(*self._compact(tokens, keep), info)

    def demonstrations(
        self,
        key: Key[Array, ""],
        prompts: Prompts,
        *,
        error_rate: float | Float[Array, ""] = 0.0,
        paraphrase: bool = True,
    ) -> tuple[Int[Array, "n response"], Bool[Array, "n response"]]:
        """Scratchpads `p1 ; p2 ; ... # answer eos` as a teacher would write them.

        Args:
          key: a typed key.
          prompts: what `prompts` returned.
          error_rate: probability that a step's result is replaced by another number, uniformly;
            later steps and the answer follow from what was written.
          paraphrase: before each separator write nothing or one connective, all equally likely.

        Returns:
          Token ids padded on the right to `max_response`, and where they hold a token.
        """
        slip_key, offset_key, word_key = jax.random.split(key, 3)
        steps = prompts.info["steps"]
        shape = (n, _) = prompts.info["operators"].shape
        slips = jax.random.bernoulli(slip_key, error_rate, shape)
        offsets = jnp.where(slips, jax.random.randint(offset_key, shape, 1, self.modulus), 0)
        written = self._evaluate(prompts.info["operands"], prompts.info["operators"], offsets)
        index = jnp.arange(self.max_steps)
        present = index < steps[:, None]
        words = jax.random.randint(word_key, shape, -1, len(self.connectives))
        has_word = present & (words >= 0) & paraphrase
        ends = jnp.where(index == steps[:, None] - 1, self.delimiter, self.separator)
        cells = jnp.stack([self.first_number + written, self.first_connective + words, ends], 2)
        answer = self.first_number + jnp.take_along_axis(written, steps[:, None] - 1, axis=1)
        tokens = jnp.concatenate([cells.reshape(n, -1), answer, jnp.full((n, 1), self.eos)], 1)
        keep = jnp.stack([present, has_word, present], 2).reshape(n, -1)
        return self._compact(tokens, jnp.concatenate([keep, jnp.ones((n, 2), bool)], 1))

    def written_answer(self, traj: Trajectory) -> Int[Array, "batch"]:
        """The number that a response gives as its answer; -1 where the form is broken.

        The acted tokens must hold exactly one `#`, then one number, then `eos`, and nothing more.
        """
        order = jnp.cumsum(traj.mask, axis=1)  # among acted tokens, whatever lies between them
        marks = traj.mask & (traj.tokens == self.delimiter)
        position = jnp.sum(jnp.where(marks, order, 0), axis=1)
        after = order - position[:, None]
        number = traj.mask & (after == 1) & self._is_number(traj.tokens)
        ended = traj.mask & (after == 2) & (traj.tokens == self.eos)
        value = jnp.sum(jnp.where(number, traj.tokens - self.first_number, 0), axis=1)
        proper = (
            (jnp.sum(marks, axis=1) == 1)
            & jnp.any(number, axis=1)
            & jnp.any(ended, axis=1)
            & (jnp.sum(traj.mask, axis=1) == position + 2)
        )
        return jnp.where(proper, value, -1)

    def verify(self, traj: Trajectory) -> Float[Array, "batch"]:
        """1 where `written_answer` is `traj.info["answer"]`, else 0; the steps are not looked at."""
        return (self.written_answer(traj) == traj.info["answer"]).astype(jnp.float32)

    def step_correct(
        self, traj: Trajectory
    ) -> tuple[Bool[Array, "batch time"], Bool[Array, "batch time"]]:
        """Check each step's result: (it is one and right, it is one).

        The k-th acted number before the first `#` is checked against the k-th true partial of
        `traj.info["partials"]`; numbers beyond the expression's steps are wrong.
        """
        marks = traj.mask & (traj.tokens == self.delimiter)
        results = traj.mask & self._is_number(traj.tokens) & (jnp.cumsum(marks, axis=1) == 0)
        index = jnp.maximum(jnp.cumsum(results, axis=1) - 1, 0)
        partials = traj.info["partials"]
        truth = jnp.take_along_axis(partials, jnp.minimum(index, partials.shape[1] - 1), axis=1)
        within = index < traj.info["steps"][:, None]
        return results & within & (traj.tokens - self.first_number == truth), results

    def reference_answer(
        self, info: dict[str, Array]
    ) -> tuple[Int[Array, "n 2"], Bool[Array, "n 2"]]:
        """What should follow `#`: the answer and `eos`."""
        answer = self.first_number + info["answer"]
        tokens = jnp.stack([answer, jnp.full_like(answer, self.eos)], axis=1)
        return tokens, jnp.ones_like(tokens, bool)

    def reference_derivation(
        self, key: Key[Array, ""], prompts: Prompts, length: int = 30
    ) -> tuple[Int[Array, "n length"], Bool[Array, "n length"]]:
        """A long reference to follow `#`: `a op b = p ; p op c = q eos` among connectives.

        Connectives fill the row to exactly `length` tokens. Their places and words are uniform, so
        with s steps and w words there are C(length - 1, 6 s - 1) * w ** (length - 6 s) equally
        likely forms: the probability of any one is below e^-30 at the defaults.

        Raises:
          ValueError: `length` cannot hold `max_steps` steps (6 tokens each).
        """
        if length < DERIVED_SLOTS * self.max_steps:
            raise ValueError(
                f"length: expected at least {DERIVED_SLOTS * self.max_steps} for max_steps = "
                f"{self.max_steps}, found {length}"
            )
        place_key, word_key = jax.random.split(key)
        info, n = prompts.info, prompts.tokens.shape[0]
        steps = info["steps"][:, None]
        left = jnp.concatenate([info["operands"][:, :1], info["partials"][:, :-1]], axis=1)
        equals = jnp.full_like(left, self.equals)
        ends = jnp.where(jnp.arange(self.max_steps) == steps - 1, self.eos, self.separator)
        number = self.first_number
        cells = [left + number, info["operators"] + self.first_operator]
        cells += [info["operands"][:, 1:] + number, equals, info["partials"] + number, ends]
        content = jnp.stack(cells, axis=2).reshape(n, -1)
        # A random subset of the places that always has the last one: eos must stand there.
        draws = jax.random.uniform(place_key, (n, length)).at[:, -1].set(-1.0)
        chosen = jnp.argsort(jnp.argsort(draws, axis=1), axis=1) < DERIVED_SLOTS * steps
        index = jnp.maximum(jnp.cumsum(chosen, axis=1) - 1, 0)
        words = jax.random.randint(word_key, (n, length), self.first_connective, self.vocab_size)
        tokens = jnp.where(chosen, jnp.take_along_axis(content, index, axis=1), words)
        return tokens, jnp.ones_like(tokens, bool)

    def _is_number(self, tokens: Int[Array, "*shape"]) -> Bool[Array, "*shape"]:
        return (tokens >= self.first_number) & (tokens < self.first_operator)

    def _evaluate(
        self,
        operands: Int[Array, "n terms"],
        operators: Int[Array, "n steps"],
        offsets: Int[Array, "n steps"],
    ) -> Int[Array, "n steps"]:
        """Results from left to right, each moved by its offset before the next step reads it."""
        value, results = operands[:, 0], []
        for step in range(self.max_steps):
            outcomes = jnp.stack(
                [OPERATIONS[symbol](value, operands[:, step + 1]) for symbol in self.operations]
            )
            value = jnp.take_along_axis(outcomes, operators[None, :, step], axis=0)[0]
            value = (value + offsets[:, step]) % self.modulus
            results.append(value)
        return jnp.stack(results, axis=1)

    def _compact(
        self, tokens: Int[Array, "n slots"], keep: Bool[Array, "n slots"]
    ) -> tuple[Int[Array, "n slots"], Bool[Array, "n slots"]]:
        """Move the kept tokens to the left, in order, and pad the rest."""
        order = jnp.argsort(~keep, axis=1, stable=True)
        valid = jnp.take_along_axis(keep, order, axis=1)
        return jnp.where(valid, jnp.take_along_axis(tokens, order, axis=1), self.pad), valid
