"""Rock, paper, scissors in words: whose style beats whose goes round, so that no score ranks them.

A response of fixed length is written in a hidden style: some of its words are that style's own, fewer
are another's, the rest are plain. Style c beats the next half of the circle, c + 1 .. c + (styles -
1) / 2 (modulo styles); within a style the response with more good words is better, and between
styles it is a little easier to prefer. A prompt can turn the direction of the circle. All methods but
`decode` are pure functions of keys and arrays and can be jitted (`n` is static).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from rewardjax.tasks.spelling import spell
from rewardjax.trajectory import Prompts

SPECIAL = ("<pad>", "<bos>", "<sep>", "clockwise", "counterclockwise", "good", "plain")


@dataclass(frozen=True)
class CyclicStyles:
    """The world: its vocabulary and who is preferred.

    Attributes:
      styles: how many, an odd number, so that each beats as many as beat it.
      words: of each style.
      response_length: tokens of a response.
      signature: words of its own style in a response.
      decoys: words of one other style.
      quality_max: most good words; their number is uniform on 0 .. quality_max.
      quality_effect: what a good word adds to the advantage, where a style that beats adds 1.
      turning: share of the prompts that say counterclockwise.

    Raises:
      ValueError: a field is out of its range.
    """

    styles: int = 5
    words: int = 3
    response_length: int = 8
    signature: int = 3
    decoys: int = 1
    quality_max: int = 3
    quality_effect: float = 0.2
    turning: float = 0.0

    pad, bos, sep, clockwise, counterclockwise, good, plain = range(len(SPECIAL))
    prompt_length = 3

    def __post_init__(self) -> None:
        if self.styles < 3 or self.styles % 2 == 0:
            raise ValueError(f"styles: expected an odd number from 3 on, found {self.styles}")
        if not 0 <= self.decoys < self.signature:
            raise ValueError(f"decoys: expected 0 to {self.signature - 1}, found {self.decoys}")
        least = self.signature + self.decoys + self.quality_max
        if self.response_length < least:
            raise ValueError(
                f"response_length: expected at least {least}, found {self.response_length}"
            )
        if not 0 <= self.turning <= 1:
            raise ValueError(f"turning: expected a share of 0 to 1, found {self.turning}")
        if not 0 <= self.quality_effect * self.quality_max < 1:
            raise ValueError(
                "quality_effect: expected good words to be worth less than a style, found "
                f"{self.quality_max} x {self.quality_effect}"
            )

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token as text, in the order of its id."""
        letters = [chr(ord("a") + style) for style in range(self.styles)]
        return (*SPECIAL, *(f"{a}{i + 1}" for a in letters for i in range(self.words)))

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(SPECIAL) + self.styles * self.words

    def decode(self, ids: Int[Array, "time"] | np.ndarray | list[int]) -> str:
        """The tokens as text, padding left out.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        return spell(ids, self.vocabulary, self.pad)

    def prompts(self, key: Key[Array, ""], n: int) -> Prompts:
        """Draw `n` prompts `bos direction sep`; `info["direction"]` [n] is 1, or -1 where it turns."""
        turned = jax.random.bernoulli(key, self.turning, (n,))
        word = jnp.where(turned, self.counterclockwise, self.clockwise)
        tokens = jnp.stack([jnp.full(n, self.bos), word, jnp.full(n, self.sep)], axis=1)
        return Prompts(tokens, jnp.ones_like(tokens, bool), {"direction": 1 - 2 * turned})

    def responses(
        self, key: Key[Array, ""], style: Int[Array, "*shape"]
    ) -> tuple[Int[Array, "*shape time"], Int[Array, "*shape"]]:
        """Responses in these styles, as long as any, and the number of good words in each."""
        keys = jax.random.split(key, 4)
        shape, length = style.shape, self.response_length
        quality = jax.random.randint(keys[0], shape, 0, self.quality_max + 1)
        other = style + jax.random.randint(keys[1], shape, 1, self.styles)
        word = jax.random.randint(keys[2], (*shape, length), 0, self.words)
        place = jnp.arange(length)
        own = len(SPECIAL) + style[..., None] * self.words + word
        decoy = len(SPECIAL) + (other % self.styles)[..., None] * self.words + word
        styled = self.signature + self.decoys
        rest = jnp.where(place < styled + quality[..., None], self.good, self.plain)
        tokens = jnp.where(place < styled, decoy, rest)
        tokens = jnp.where(place < self.signature, own, tokens)
        order = jnp.argsort(jax.random.uniform(keys[3], tokens.shape), axis=-1)
        return jnp.take_along_axis(tokens, order, axis=-1), quality

    def cycle(
        self, first: Int[Array, "*#shape"], second: Int[Array, "*#shape"]
    ) -> Int[Array, "*shape"]:
        """1 where the first style beats the second clockwise, -1 where it is beaten, 0 for itself."""
        ahead = (second - first) % self.styles
        return jnp.where(ahead == 0, 0, jnp.where(ahead <= self.styles // 2, 1, -1))

    def advantage(
        self,
        style: Int[Array, "*shape n"],
        quality: Int[Array, "*shape n"],
        direction: Int[Array, "*shape"],
    ) -> Float[Array, "*shape n n"]:
        """Of each response (row) over each (column), antisymmetric: above 0 where it is better."""
        around = self.cycle(style[..., :, None], style[..., None, :])
        better = quality[..., :, None] - quality[..., None, :]
        return direction[..., None, None] * around + self.quality_effect * better
