"""A score that depends on who asks, and who asks is inferred from a few comparisons of theirs (VPL)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from rewardjax.models.actor_critic import MLP, Gaussian
from rewardjax.models.transformer import weight

Params = Any


class SetEncoder(nn.Module):
    """The posterior of a user's latent, from a set of comparisons of any size and in any order.

    Each comparison is embedded on its own, as (preferred, other), so that which came first cannot
    matter; the embeddings are pooled by attention with a learned query. Their number is read too: more
    comparisons leave less doubt. None at all give a posterior of their own.
    """

    latent: int
    width: int = 64

    @nn.compact
    def __call__(
        self,
        preferred: Float[Array, "*batch set inputs"],
        other: Float[Array, "*batch set inputs"],
        present: Bool[Array, "*batch set"],
    ) -> Gaussian:
        """The posterior of each set; `present` is off where there is no comparison."""
        pairs = jnp.concatenate([preferred, other], axis=-1)
        embedded = MLP((self.width, self.width), self.width, name="each", spread=0.1)(pairs)
        query = weight(self, "query", (self.width,), (None,))
        logits = jnp.where(present, embedded @ query, -jnp.inf)
        some = jnp.any(present, axis=-1, keepdims=True)
        attention = jnp.where(present, jax.nn.softmax(jnp.where(some, logits, 0.0)), 0.0)
        pooled = jnp.sum(attention[..., None] * embedded, axis=-2)
        count = jnp.log1p(jnp.sum(present, axis=-1, keepdims=True).astype(jnp.float32))
        found = MLP((self.width,), 2 * self.latent, name="all")(
            jnp.concatenate([pooled, count], axis=-1)
        )
        return Gaussian(*jnp.split(found, 2, axis=-1))


@dataclasses.dataclass(frozen=True)
class LatentScorer:
    """Pure functions of `params`: a posterior of the latent z, and comparisons given z.

    VPL (arXiv:2408.10075). The decoder scores an item, `r(s, z)`; or, `pairwise`, an ordered pair, and its
    logit is `D(s, s', z) - D(s', s, z)`, so that exchanging the two exchanges the preference.

    Attributes:
      inputs: numbers that describe an item.
      latent: numbers in z.
      width: of the layers.
      pairwise: the decoder sees both items of a comparison.
    """

    inputs: int
    latent: int = 8
    width: int = 64
    pairwise: bool = False

    def boxed_init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters `{"encoder", "decoder"}` with logical axis names."""
        encoder, decoder = jax.random.split(key)
        item, z = jnp.zeros((1, 1, self.inputs)), jnp.zeros((1, self.latent))
        seen = [item[0]] * (2 if self.pairwise else 1)
        return {
            "encoder": self._encoder.init(encoder, item, item, jnp.ones((1, 1), bool))["params"],
            "decoder": self._decoder.init(decoder, jnp.concatenate([*seen, z], axis=-1))["params"],
        }

    def posterior(
        self,
        params: Params,
        preferred: Float[Array, "*batch set inputs"],
        other: Float[Array, "*batch set inputs"],
        present: Bool[Array, "*batch set"],
    ) -> Gaussian:
        """Who made these comparisons, as a distribution of z."""
        found: Any = self._encoder.apply({"params": params["encoder"]}, preferred, other, present)
        return found

    def logit(
        self,
        params: Params,
        first: Float[Array, "*batch inputs"],
        second: Float[Array, "*batch inputs"],
        z: Float[Array, "*batch latent"],
    ) -> Float[Array, "*batch"]:
        """Log-odds that the first item is preferred."""
        if self.pairwise:
            return self._decode(params, first, second, z) - self._decode(params, second, first, z)
        return self._decode(params, first, z) - self._decode(params, second, z)

    def score(
        self,
        params: Params,
        items: Float[Array, "items inputs"],
        z: Float[Array, "latent"],
        rivals: Float[Array, "rivals inputs"] | None = None,
    ) -> Float[Array, "items"]:
        """Each item's reward for one user: `r(s, z)`.

        With `rivals` (a pairwise decoder needs them) how probably the item is preferred to one of them,
        on average: in [0, 1] for every user (VPL-SPO).

        Raises:
          ValueError: a pairwise decoder without rivals.
        """
        if rivals is None:
            if self.pairwise:
                raise ValueError("rivals: expected items that a pairwise decoder compares with")
            return self._decode(params, items, jnp.broadcast_to(z, (len(items), self.latent)))
        shape = (len(items), len(rivals))
        first, second = items[:, None], rivals[None]
        first, second = (jnp.broadcast_to(x, (*shape, self.inputs)) for x in (first, second))
        logits = self.logit(params, first, second, jnp.broadcast_to(z, (*shape, self.latent)))
        return jnp.mean(jax.nn.sigmoid(logits), axis=1)

    def _decode(self, params: Params, *parts: Float[Array, "*batch _"]) -> Float[Array, "*batch"]:
        joined = jnp.concatenate(parts, axis=-1)
        found: Any = self._decoder.apply({"params": params["decoder"]}, joined)
        return found[..., 0]

    @property
    def _encoder(self) -> nn.Module:
        return SetEncoder(self.latent, self.width)

    @property
    def _decoder(self) -> nn.Module:
        return MLP((self.width, self.width), spread=0.3)
