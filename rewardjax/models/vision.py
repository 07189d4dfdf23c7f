"""A language model that sees: an image's embeddings in the places of placeholder tokens."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rewardjax.models.attention import Visibility
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.projection import project
from rewardjax.models.transformer import (
    Transformer,
    TransformerConfig,
    block_of,
    scanned,
    weight,
)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of a patch encoder.

    Attributes:
      height, width: of an image, in pixels.
      channels: of an image.
      patch: side of a square patch, in pixels.
      mean, deviation: of pixels in [0, 1]; what the encoder sees is `(pixel - mean) / deviation`.
      blocks: of the encoder, of any depth or none; each patch sees every other. `vocab` is not used.
      pooled: embeddings into which all patches are pooled by learned maps of their content
        (TokenLearner, arXiv:2106.11297); 0 keeps one for each patch.

    Raises:
      ValueError: the patches do not tile the image, or the blocks are causal or see a part only.
    """

    height: int = 32
    width: int = 32
    channels: int = 3
    patch: int = 8
    mean: float = 0.5
    deviation: float = 0.5
    blocks: TransformerConfig = TransformerConfig(layers=1, causal=False)
    pooled: int = 0

    def __post_init__(self):
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(
                f"VisionConfig.patch={self.patch} does not tile {self.height} x {self.width} pixels"
            )
        if self.blocks.causal:
            raise ValueError("VisionConfig.blocks.causal: expected False, found True")
        if self.blocks.spans != ("global",):
            raise ValueError(
                f'VisionConfig.blocks.spans: expected ("global",), found {self.blocks.spans}'
            )

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.height // self.patch) * (self.width // self.patch)

    @property
    def length(self) -> int:
        """Embeddings of an image, and placeholder tokens that they take the places of."""
        return self.pooled or self.patches


def patchify(image: Float[Array, "batch height wide channels"], patch: int) -> Float[Array, "..."]:
    """An image's patches `[batch, patches, patch * patch * channels]`, read row by row."""
    batch, height, wide, channels = image.shape
    x = image.reshape(batch, height // patch, patch, wide // patch, patch, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, patch * patch * channels)


class VisionEncoder(nn.Module):
    """Patches, learned positions, bidirectional blocks, pooling, and a projector to the decoder."""

    config: VisionConfig
    width: int

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height wide channels"]
    ) -> Float[Array, "batch length width"]:
        """Embeddings of an image, from pixels in [0, 1].

        Raises:
          ValueError: the image is not of the configured size.
        """
        c, blocks = self.config, self.config.blocks
        expected = (c.height, c.width, c.channels)
        if image.shape[1:] != expected:
            raise ValueError(
                f"image: expected height, width and channels {expected}, found {image.shape[1:]}"
            )
        patches = patchify((image - c.mean) / c.deviation, c.patch).astype(blocks.dtype)
        content = self._mlp("patch", patches, blocks.width)
        x = content + self._table("position", c.patches)
        if blocks.layers:
            places = jnp.broadcast_to(jnp.arange(c.patches), x.shape[:2])
            one = jnp.ones(x.shape[:2], jnp.int32)
            everywhere = {"global": Visibility(one, one, causal=False)}
            if blocks.scan:
                groups = scanned(blocks, blocks.layers, name="groups")
                turns = jnp.arange(blocks.layers)
                (x, _), _ = groups((x, None), turns, places, everywhere, 0)
            else:
                block = block_of(blocks)
                for i in range(blocks.layers):
                    x, _ = block(blocks, "global", name=f"block_{i}")(
                        x, places, everywhere, None, 0
                    )
        return self._mlp("project", self._pool(content, x) if c.pooled else x, self.width)

    def _pool(self, content: Array, x: Array) -> Float[Array, "batch pooled size"]:
        c = self.config
        sizes, kind = (c.blocks.width, c.pooled), c.blocks.param_dtype
        # A wide start: maps that all say the same at first learn to differ very slowly.
        maps = weight(self, "maps", sizes, ("embed", None), kind, nn.initializers.normal(1.0))
        logits = project(content, maps.astype(content.dtype)).astype(jnp.float32)
        shares = jax.nn.softmax(logits, axis=1).astype(x.dtype)
        return jnp.einsum("bpk,bpw->bkw", shares, x) + self._table("pooled", c.pooled)

    def _table(self, name: str, rows: int) -> Float[Array, "rows size"]:
        c = self.config.blocks
        init = nn.initializers.normal(0.5)
        table = weight(self, name, (rows, c.width), (None, "embed"), c.param_dtype, init)
        return table.astype(c.dtype)

    def _mlp(self, name: str, x: Float[Array, "batch rows size"], width: int) -> Array:
        c, into = self.config.blocks, None if name == "patch" else "embed"
        sizes = (x.shape[-1], c.mlp_width)
        up = weight(self, f"{name}_up", sizes, (into, "mlp"), c.param_dtype)
        down = weight(self, f"{name}_down", (c.mlp_width, width), ("mlp", "embed"), c.param_dtype)
        return project(jax.nn.gelu(project(x, up.astype(x.dtype))), down.astype(x.dtype))


class VisionLanguage(nn.Module):
    """A patch encoder in front of a decoder."""

    config: TransformerConfig
    vision: VisionConfig
    image_token: int

    def setup(self):
        """Encoder and decoder."""
        self.encoder = VisionEncoder(self.vision, self.config.width)
        self.decoder = Transformer(self.config)

    def __call__(self, tokens, segments, positions=None, cache=None, image=None):
        """As the decoder, with `image` in the places of `image_token`."""
        given = None if image is None else self.placed(tokens, image)
        return self.decoder(tokens, segments, positions, cache, given)

    def placed(
        self,
        tokens: Int[Array, "batch time"],
        image: Float[Array, "batch height wide channels"],
    ) -> tuple[Float[Array, "batch time width"], Bool[Array, "batch time"]]:
        """Each row's embeddings in order at its placeholders, and where those are.

        Raises:
          ValueError: rows are shorter than an image.
        """
        length = self.vision.length
        if tokens.shape[1] < length:
            raise ValueError(
                f"tokens: expected {length} placeholders a row, as an image has embeddings, found "
                f"rows of {tokens.shape[1]} tokens"
            )
        # The first ones only: a placeholder in a response is a token like any other, as in decoding.
        count = jnp.cumsum(tokens == self.image_token, axis=1)
        here = (tokens == self.image_token) & (count <= length)
        index = jnp.clip(count - 1, 0, length - 1)
        return jnp.take_along_axis(self.encoder(image), index[..., None], axis=1), here

    def logits(self, hidden):
        """Float32 logits of the next token."""
        return self.decoder.logits(hidden)


@dataclasses.dataclass(frozen=True)
class VisionLanguageModel(LanguageModel):
    """Pure functions of `params` for a decoder that reads images.

    A prompt has `vision.length` of `image_token`, and `info["image"]` `[batch, height, width,
    channels]`, pixels in [0, 1].

    Attributes:
      vision: the encoder's configuration.
      image_token: id of the placeholder.
    """

    vision: VisionConfig = VisionConfig()
    image_token: int = 3

    @property
    def module(self) -> VisionLanguage:
        """The Flax module behind the functions."""
        return VisionLanguage(self.config, self.vision, self.image_token)

    def boxed_init(self, key: PRNGKeyArray):
        """Fresh parameters with their logical axis names."""
        v = self.vision
        tokens = jnp.full((1, v.length), self.image_token)
        image = jnp.zeros((1, v.height, v.width, v.channels))
        return self.module.init(key, tokens, jnp.ones_like(tokens), image=image)["params"]

    def hidden(self, params, tokens, segments, positions=None, cache=None, *, image=None):
        """Hidden states `[batch, time, width]`, and the cache if there is one.

        The image goes in with the tokens that stand for it; decoding steps behind them need none.
        """
        return self.module.apply({"params": params}, tokens, segments, positions, cache, image)
