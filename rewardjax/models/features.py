"""What a frozen backbone says of a prompt and of a response: states that heads read."""

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from rewardjax.models.heads import last_valid
from rewardjax.models.language_model import LanguageModel


@struct.dataclass
class Features:
    """Float32 states of the last layer, one of each a sequence.

    Attributes:
      prompt: at the last token before the response: it has seen the prompt only.
      response: at the last token: it has seen both.
    """

    prompt: Float[Array, "*batch width"]
    response: Float[Array, "*batch width"]


def last_token_features(
    model: LanguageModel,
    params: Any,
    tokens: Int[Array, "batch time"],
    valid: Bool[Array, "batch time"],
    mask: Bool[Array, "batch time"],
) -> Features:
    """Features of whole sequences, from one forward pass.

    Args:
      model: causal, so that the prompt's state is the same whatever the response.
      params: its parameters (those of a scorer's `backbone` fit as well).
      tokens: prompt, then response.
      valid: where `tokens` holds a token rather than padding.
      mask: on at the response. A row without one is all prompt.
    """
    hidden, _ = model.hidden(params, tokens, valid.astype(jnp.int32))
    hidden = hidden.astype(jnp.float32)
    before = valid & (jnp.cumsum(mask, axis=1) == 0)
    return Features(prompt=last_valid(hidden, before), response=last_valid(hidden, valid))
