"""Token ids of a generated world as text."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Int


def spell(
    ids: Int[Array, "time"] | np.ndarray | list[int], vocabulary: Sequence[str], pad: int
) -> str:
    """The tokens' words, `pad` left out.

    Raises:
      ValueError: an id outside the vocabulary.
    """
    row = [int(token) for token in np.asarray(ids)]
    for token in row:
        if not 0 <= token < len(vocabulary):
            raise ValueError(f"ids: expected 0 to {len(vocabulary) - 1}, found {token}")
    return " ".join(vocabulary[token] for token in row if token != pad)
