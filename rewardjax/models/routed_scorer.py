"""Several linear scorers on a frozen backbone's features, and a router that weighs them by the prompt.

The router never sees the response: its weights could otherwise say which response is preferred.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax.models.features import Features
from rewardjax.models.heads import Head
from rewardjax.models.transformer import weight

Params = Any


class Router(nn.Module):
    """Logits over choices from a prompt's feature, through ReLU layers; near uniform at first.

    Attributes:
      choices: how many.
      widths: of the hidden layers; None for one set of logits, whatever the prompt.
    """

    choices: int
    widths: tuple[int, ...] | None = (128,)

    @nn.compact
    def __call__(self, prompt: Float[Array, "*batch width"]) -> Float[Array, "*batch choices"]:
        """The logits of each prompt."""
        zeros = nn.initializers.zeros
        if self.widths is None:
            logits = weight(self, "logits", (self.choices,), (None,), init=zeros)
            return jnp.broadcast_to(logits, (*prompt.shape[:-1], self.choices))
        x = prompt
        for i, width in enumerate(self.widths):
            kernel = weight(self, f"kernel_{i}", (x.shape[-1], width), (None, "mlp"))
            x = nn.relu(x @ kernel + weight(self, f"bias_{i}", (width,), ("mlp",), init=zeros))
        return Head(self.choices, spread=0.01)(x)


@dataclasses.dataclass(frozen=True)
class RoutedScorer:
    """Pure functions of `params`: K linear heads without intercept, and their weights for a prompt.

    MiCRo (arXiv:2505.24846). Heads start at random: equal ones would stay equal.

    Attributes:
      inputs: width of the features.
      heads: K.
      router: widths of its layers; None for weights that no prompt changes.
      spread: standard deviation of a head's first weights.
    """

    inputs: int
    heads: int
    router: tuple[int, ...] | None = (128,)
    spread: float = 0.1

    def boxed_init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters `{"heads", "router"}` with logical axis names."""
        empty, (heads, router) = jnp.zeros((1, self.inputs)), jax.random.split(key)
        return {
            "heads": self._heads.init(heads, empty)["params"],
            "router": self._router.init(router, empty)["params"],
        }

    def scores(
        self, params: Params, response: Float[Array, "*batch width"]
    ) -> Float[Array, "*batch heads"]:
        """Every head's score of a response."""
        found: Any = self._heads.apply({"params": params["heads"]}, response)
        return found

    def route(
        self, params: Params, prompt: Float[Array, "*batch width"]
    ) -> Float[Array, "*batch heads"]:
        """Logarithms of the heads' weights, which sum to 1."""
        logits: Any = self._router.apply({"params": params["router"]}, prompt)
        return jax.nn.log_softmax(logits)

    def score(self, params: Params, features: Features) -> Float[Array, "*batch"]:
        """The weighted sum of the heads' scores."""
        weights = jnp.exp(self.route(params, features.prompt))
        return jnp.sum(weights * self.scores(params, features.response), axis=-1)

    @property
    def _heads(self) -> nn.Module:
        return Head(self.heads, bias=False, spread=self.spread)

    @property
    def _router(self) -> nn.Module:
        return Router(self.heads, self.router)


@dataclasses.dataclass(frozen=True)
class Gate:
    """Pure functions of `params`: how much each objective counts for a prompt.

    ArmoRM (arXiv:2406.12845): `softmax(MLP(prompt) / temperature) * scale`, the scale learned as well.

    Attributes:
      inputs: width of the features.
      objectives: K.
      widths: of the layers; None for one set of coefficients, whatever the prompt.
      temperature: a large one keeps the coefficients nearly uniform early in training.
      scale: where the coefficients' sum starts.
    """

    inputs: int
    objectives: int
    widths: tuple[int, ...] | None = (1024, 1024, 1024)
    temperature: float = 10.0
    scale: float = 1.0

    def boxed_init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters `{"router", "scale"}` with logical axis names."""
        router = self._router.init(key, jnp.zeros((1, self.inputs)))["params"]
        return {"router": router, "scale": nn.LogicallyPartitioned(jnp.float32(self.scale), ())}

    def coefficients(
        self, params: Params, prompt: Float[Array, "*batch width"]
    ) -> Float[Array, "*batch objectives"]:
        """The coefficients of each prompt: positive, with the scale as their sum."""
        logits: Any = self._router.apply({"params": params["router"]}, prompt)
        return jax.nn.softmax(logits / self.temperature) * params["scale"]

    @property
    def _router(self) -> nn.Module:
        return Router(self.objectives, self.widths)
