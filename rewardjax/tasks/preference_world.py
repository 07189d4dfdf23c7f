"""A world of preferences: prompts ask for a theme, responses have attributes, gold utility is known.

A good response names distinct tokens of the requested theme and repeats nothing. A *gaudy* token is
worth nothing, but good writers are fond of it and put a few in: a reward model learned from
comparisons of writers' responses takes it for quality, and a policy can then write it twelve times.
Gold utility, proxy and the gap between them can all be measured. Who compares and rates is in
`rewardjax.tasks.annotators`.

All methods but `decode` are pure functions of keys and arrays and can be jitted (`n` is static).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rewardjax.tasks.spelling import spell
from rewardjax.trajectory import Prompts

ATTRIBUTES = ("coverage", "repetition", "gaudy", "sentiment", "length")
SPECIAL = ("<pad>", "<bos>", "<eos>", "<sep>")
ON_THEME, OFF_THEME, NEUTRAL, SENTIMENT, REPEAT = range(5)


@dataclass(frozen=True)
class PreferenceWorld:
    """The world: its vocabulary, its gold utility and its writers.

    The defaults give 24 tokens; `PreferenceWorld(markers=True, neutral=3, positive=2, negative=2)`
    gives 32.

    Attributes:
      themes: number of themes.
      tokens_per_theme: tokens that belong to each theme.
      neutral: number of neutral tokens.
      gaudy: number of gaudy tokens.
      positive: number of tokens of positive sentiment.
      negative: number of tokens of negative sentiment.
      markers: prompts name a theme by a token of its own; otherwise by the theme's first token.
      requested: how many themes a prompt asks for.
      response_length: most tokens of a response, `eos` included.
      min_length: fewest tokens of a writer's response, `eos` included.
      full_coverage: distinct requested tokens at which coverage is 1.
      repetition_penalty: gold lost per unit of repetition.
      gaudy_effect: gold per gaudy token; 0 or slightly negative.
      sentiment_effect: gold per unit of sentiment.
      length_effect: gold per token of length.
      gaudy_max: most gaudy tokens that a writer puts into a response.
      gaudy_correlation: -1 to 1. A writer of quality q puts Binomial(gaudy_max, 1/2 +
        gaudy_correlation * (q - 1/2)) gaudy tokens: 0 makes them independent of quality.
      on_theme: share of a writer's plain tokens that serve the request, at quality 0 and at 1.
      sentiment_rate: share of a writer's tokens that carry sentiment.

    Raises:
      ValueError: a field is out of its range.
    """

    themes: int = 4
    tokens_per_theme: int = 4
    neutral: int = 1
    gaudy: int = 1
    positive: int = 1
    negative: int = 1
    markers: bool = False
    requested: int = 1
    response_length: int = 12
    min_length: int = 6
    full_coverage: int = 4
    repetition_penalty: float = 1.0
    gaudy_effect: float = 0.0
    sentiment_effect: float = 0.0
    length_effect: float = 0.0
    gaudy_max: int = 3
    gaudy_correlation: float = 1.0
    on_theme: tuple[float, float] = (0.1, 0.9)
    sentiment_rate: float = 0.1

    def __post_init__(self) -> None:
        ranges = {
            "themes": (2, 26),
            "tokens_per_theme": (1, None),
            "neutral": (1, None),
            "gaudy": (1, None),
            "positive": (1, None),
            "negative": (1, None),
            "requested": (1, self.themes - 1),  # or nothing would be off the theme
            "min_length": (1, self.response_length - self.gaudy_max),
            "full_coverage": (1, self.requested * self.tokens_per_theme),
            "gaudy_max": (0, None),
            "gaudy_correlation": (-1, 1),
            "sentiment_rate": (0, 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                expected = f"at least {low}" if high is None else f"{low} to {high}"
                raise ValueError(f"{name}: expected {expected}, found {value}")
        if not all(0 <= share <= 1 for share in self.on_theme):
            raise ValueError(f"on_theme: expected two shares of 0 to 1, found {self.on_theme}")

    pad = 0
    bos = 1
    eos = 2
    sep = 3
    first_theme_token = len(SPECIAL)

    @property
    def theme_tokens(self) -> int:
        """Number of tokens that belong to some theme; theme t's start at t * tokens_per_theme."""
        return self.themes * self.tokens_per_theme

    @property
    def first_neutral(self) -> int:
        """Id of the first neutral token."""
        return self.first_theme_token + self.theme_tokens

    @property
    def first_gaudy(self) -> int:
        """Id of the first gaudy token."""
        return self.first_neutral + self.neutral

    @property
    def first_positive(self) -> int:
        """Id of the first token of positive sentiment."""
        return self.first_gaudy + self.gaudy

    @property
    def first_negative(self) -> int:
        """Id of the first token of negative sentiment."""
        return self.first_positive + self.positive

    @property
    def first_marker(self) -> int:
        """Id of the first theme marker, where there are any."""
        return self.first_negative + self.negative

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.first_marker + (self.themes if self.markers else 0)

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt: `bos`, the requested themes, `sep`."""
        return self.requested + 2

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token as text, in the order of its id."""
        letters = [chr(ord("a") + theme) for theme in range(self.themes)]
        words = [f"{letter}{i + 1}" for letter in letters for i in range(self.tokens_per_theme)]
        sizes = {
            "plain": self.neutral,
            "gaudy": self.gaudy,
            "good": self.positive,
            "bad": self.negative,
        }
        words += [f"{name}{i + 1}" for name, size in sizes.items() for i in range(size)]
        return (*SPECIAL, *words, *(f"<{letter}>" for letter in letters if self.markers))

    @property
    def gold_weights(self) -> Float[Array, "attributes"]:
        """What gold gives for one unit of each of `ATTRIBUTES`."""
        effects = [self.gaudy_effect, self.sentiment_effect, self.length_effect]
        return jnp.asarray([1.0, -self.repetition_penalty, *effects], jnp.float32)

    def decode(self, ids: Int[Array, "time"] | np.ndarray | list[int]) -> str:
        """The tokens as text, padding left out.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        return spell(ids, self.vocabulary, self.pad)

    def prompts(self, key: Key[Array, ""], n: int) -> Prompts:
        """Draw `n` requests `bos theme ... sep`; `info["theme"]` [n, requested] are distinct."""
        theme = jnp.argsort(jax.random.uniform(key, (n, self.themes)), axis=1)[:, : self.requested]
        return self.asking(theme)

    def asking(self, theme: Int[Array, "n requested"]) -> Prompts:
        """The requests for these themes."""
        n = theme.shape[0]
        own = self.first_theme_token + theme * self.tokens_per_theme
        names = self.first_marker + theme if self.markers else own
        tokens = jnp.concatenate([jnp.full((n, 1), self.bos), names, jnp.full((n, 1), self.sep)], 1)
        return Prompts(tokens, jnp.ones_like(tokens, bool), {"theme": theme})

    def attributes(
        self,
        tokens: Int[Array, "batch time"],
        mask: Bool[Array, "batch time"],
        info: dict[str, Array],
    ) -> Float[Array, "batch attributes"]:
        """The attributes of each response, in the order of `ATTRIBUTES`.

        They are those of the acted tokens (`mask`) other than `eos`, in whatever order they stand:
        - coverage: min(distinct tokens of the requested themes, full_coverage) / full_coverage;
        - repetition: acted tokens that repeat an earlier one, over `response_length` (a fixed
          denominator: a share of the response could be diluted with filler);
        - gaudy: number of gaudy tokens;
        - sentiment: share of positive tokens minus share of negative ones, -1 to 1;
        - length: number of tokens.
        """
        content = mask & (tokens != self.eos)
        one_hot = jax.nn.one_hot(tokens, self.vocab_size, dtype=jnp.float32)
        counts = jnp.sum(one_hot * content[..., None], axis=1)
        used = (counts > 0).astype(jnp.float32)
        length = jnp.sum(content, axis=1).astype(jnp.float32)
        by_theme = used[:, self.first_theme_token : self.first_neutral]
        by_theme = jnp.sum(by_theme.reshape(-1, self.themes, self.tokens_per_theme), axis=2)
        distinct = jnp.sum(by_theme * self._requested(info["theme"]), axis=1)
        gaudy = jnp.sum(counts[:, self.first_gaudy : self.first_positive], axis=1)
        positive = jnp.sum(counts[:, self.first_positive : self.first_negative], axis=1)
        negative = jnp.sum(counts[:, self.first_negative : self.first_marker], axis=1)
        columns = [
            jnp.minimum(distinct, self.full_coverage) / self.full_coverage,
            (length - jnp.sum(used, axis=1)) / self.response_length,
            gaudy,
            (positive - negative) / jnp.maximum(length, 1.0),
            length,
        ]
        return jnp.stack(columns, axis=1)

    def gold(
        self,
        tokens: Int[Array, "batch time"],
        mask: Bool[Array, "batch time"],
        info: dict[str, Array],
        weights: Float[Array, "attributes"] | Float[Array, "batch attributes"] | None = None,
    ) -> Float[Array, "batch"]:
        """Gold utility: attributes times `gold_weights`, or times one annotator's `weights`.

        At the defaults coverage minus repetition: 1 at best, above -1 at worst.
        """
        weights = self.gold_weights if weights is None else weights
        return jnp.sum(self.attributes(tokens, mask, info) * weights, axis=1)

    def annotators(
        self, key: Key[Array, ""], count: int, *, spread: float = 0.5
    ) -> Float[Array, "count attributes"]:
        """Weights of `count` annotators who disagree: normal around `gold_weights`.

        `spread` is the standard deviation of what an attribute's whole range is worth (counts range
        to `response_length`, the others to 1). Give a row, or one row a response, to `gold`.
        """
        ranges = jnp.asarray([1.0, 1.0, self.response_length, 1.0, self.response_length])
        tastes = jax.random.normal(key, (count, len(ATTRIBUTES)))
        return self.gold_weights + spread * tastes / ranges

    def writers(
        self, key: Key[Array, ""], prompts: Prompts
    ) -> tuple[Int[Array, "n response"], Bool[Array, "n response"], Float[Array, "n"]]:
        """Responses as people write them: (token ids, where they hold a token, latent quality).

        Quality is uniform on 0 .. 1. It raises the share of distinct on-theme tokens over off-theme
        and neutral ones and repeats (a third each), and with `gaudy_correlation` the number of
        gaudy tokens, which stand between the others at random places. Sentiment follows a mood of
        its own. A response has min_length .. response_length tokens, `eos` included: uniformly
        min_length .. response_length - gaudy_max, and the gaudy ones besides.
        """
        keys = jax.random.split(key, 6)
        n = prompts.tokens.shape[0]
        quality = jax.random.uniform(keys[0], (n,))
        plain = self._plain_tokens(keys[1], prompts.info["theme"], quality)
        rate = 0.5 + self.gaudy_correlation * (quality - 0.5)
        draws = jax.random.uniform(keys[2], (n, self.gaudy_max)) < rate[:, None]
        count = jnp.sum(draws, axis=1, keepdims=True)
        longest = self.response_length - self.gaudy_max
        length = count + jax.random.randint(keys[3], (n, 1), self.min_length, longest + 1)
        position = jnp.arange(self.response_length)
        places = jax.random.uniform(keys[4], plain.shape)
        places = jnp.where(position < length - 1, places, 2.0)  # 2: behind every place before eos
        is_gaudy = jnp.argsort(jnp.argsort(places, axis=1), axis=1) < count
        gaudy = self.first_gaudy + jax.random.randint(keys[5], plain.shape, 0, self.gaudy)
        index = jnp.maximum(jnp.cumsum(~is_gaudy, axis=1) - 1, 0)
        tokens = jnp.where(is_gaudy, gaudy, jnp.take_along_axis(plain, index, axis=1))
        tokens = jnp.where(position == length - 1, self.eos, tokens)
        valid = position < length
        return jnp.where(valid, tokens, self.pad), valid, quality

    def _requested(self, theme: Int[Array, "n requested"]) -> Float[Array, "n themes"]:
        return jnp.sum(jax.nn.one_hot(theme, self.themes), axis=1)

    def _plain_tokens(
        self, key: Key[Array, ""], theme: Int[Array, "n requested"], quality: Float[Array, "n"]
    ) -> Int[Array, "n response"]:
        """A row of tokens for each writer, from which gaudy ones and `eos` are still missing."""
        kind_key, order_key, neutral_key, mood_key, sign_key, word_key = jax.random.split(key, 6)
        n = quality.shape[0]
        shape = (n, self.response_length)
        on = self.on_theme[0] + (self.on_theme[1] - self.on_theme[0]) * quality
        plain = 1.0 - self.sentiment_rate
        rest = plain * (1.0 - on) / 3
        shares = [plain * on, rest, rest, jnp.full(n, self.sentiment_rate), rest]
        logits = jnp.log(jnp.stack(shares, axis=1))[:, None]
        kind = jax.random.categorical(kind_key, logits, shape=shape)
        kind = jnp.where((kind == REPEAT) & (jnp.arange(shape[1]) == 0), NEUTRAL, kind)
        # Theme tokens in random order, requested first: on-theme words are taken from the front
        # (and go past the theme when it is used up), off-theme words from the back.
        requested = jnp.repeat(self._requested(theme), self.tokens_per_theme, axis=1)
        order = jnp.argsort(jax.random.uniform(order_key, requested.shape) - requested, axis=1)
        front = (jnp.cumsum(kind == ON_THEME, axis=1) - 1) % self.theme_tokens
        off_theme = (self.themes - self.requested) * self.tokens_per_theme
        back = self.theme_tokens - 1 - (jnp.cumsum(kind == OFF_THEME, axis=1) - 1) % off_theme
        index = jnp.where(kind == ON_THEME, front, back)
        tokens = self.first_theme_token + jnp.take_along_axis(order, index, axis=1)
        neutral = self.first_neutral + jax.random.randint(neutral_key, shape, 0, self.neutral)
        tokens = jnp.where(kind == NEUTRAL, neutral, tokens)
        mood = jax.random.uniform(mood_key, (n, 1))
        cheerful = jax.random.uniform(sign_key, shape) < mood
        size = jnp.where(cheerful, self.positive, self.negative)
        first = jnp.where(cheerful, self.first_positive, self.first_negative)
        felt = first + jnp.floor(jax.random.uniform(word_key, shape) * size).astype(jnp.int32)
        tokens = jnp.where(kind == SENTIMENT, felt, tokens)
        source = jax.lax.cummax(jnp.where(kind == REPEAT, 0, jnp.arange(shape[1])), axis=1)
        return jnp.take_along_axis(tokens, source, axis=1)
