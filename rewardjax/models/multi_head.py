"""Several output heads on one language model's backbone, mixed by their logits (arXiv:2510.01167).

Logits are linear in the output matrix: `sum_i w_i W_i^T h = (sum_i w_i W_i)^T h`. A mixture of heads is
therefore a plain language model with the mixed matrix, and whatever samples from a language model or scores
with it takes the parameters of a mixture. Where logits are capped, the cap comes after the mixture.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class MultiHead:
    """Pure functions of `params` for one backbone with several output matrices.

    Parameters are those of the language model in `"backbone"`, without its output matrix, and all output
    matrices in `"heads"`, `[heads, width, vocab]`.

    Attributes:
      model: the language model, whose embeddings are not tied.
      heads: number of output matrices, at least 1.
      spread: standard deviation of the noise by which heads differ at first.

    Raises:
      ValueError: the model has no output matrix of its own, or there is no head.
    """

    model: LanguageModel
    heads: int
    spread: float = 1e-3

    def __post_init__(self) -> None:
        if self.model.config.tied_embeddings:
            raise ValueError("model: expected tied_embeddings=False, found tied embeddings")
        if self.heads < 1:
            raise ValueError(f"heads: expected at least 1, found {self.heads}")

    @property
    def config(self) -> TransformerConfig:
        """Of the backbone."""
        return self.model.config

    def boxed_init(self, key: PRNGKeyArray):
        """Fresh parameters with their logical axis names."""
        model_key, noise_key = jax.random.split(key)
        backbone = dict(self.model.boxed_init(model_key))
        matrix = backbone.pop("unembedding")
        heads = self._around(matrix.unbox(), noise_key)
        return {
            "backbone": backbone,
            "heads": matrix.replace(value=heads, names=(None, *matrix.names)),
        }

    def start(self, params, key: PRNGKeyArray):
        """Parameters in which each head is the language model's own matrix and a little noise.

        Args:
          params: of the language model.
          key: of the noise.
        """
        backbone = {name: x for name, x in params.items() if name != "unembedding"}
        return {"backbone": backbone, "heads": self._around(params["unembedding"], key)}

    def head(self, params, index: int):
        """The language model's parameters with one head."""
        return params["backbone"] | {"unembedding": params["heads"][index]}

    def mixed(self, params, weights: Float[Array, "heads"]):
        """The language model's parameters whose logits are the heads' mixture.

        Args:
          params: of all heads.
          weights: of the heads; they are divided by their sum, which must not be 0.
        """
        weights = weights / jnp.sum(weights)
        heads = params["heads"]
        matrix = jnp.tensordot(weights, heads.astype(jnp.float32), axes=1).astype(heads.dtype)
        return params["backbone"] | {"unembedding": matrix}

    def _around(self, matrix: Array, key: PRNGKeyArray) -> Array:
        noise = jax.random.normal(key, (self.heads, *matrix.shape), jnp.float32)
        return matrix + (self.spread * noise).astype(matrix.dtype)
