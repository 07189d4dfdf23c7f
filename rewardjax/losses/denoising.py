"""Labels seen by an ensemble: how strongly it agrees with each, and which are probably wrong.

Secrets of RLHF II (arXiv:2401.06080), sections 2.2 and 2.3. What is made of a suspect pair is said to
`losses.bradley_terry`: `probability` 0 turns its label round, one in between softens it, and the strength
as `margin` asks for as much difference as the ensemble sees, whichever way the label points.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.statistics import ranks


class Strength(NamedTuple):
    """What an ensemble says of labelled pairs.

    Attributes:
      mean: of the members' score differences, preferred less other; below 0 they vote against the label.
      std: how far the members are apart.
    """

    mean: Float[Array, "pairs"]
    std: Float[Array, "pairs"]


def preference_strength(differences: Float[Array, "members pairs"]) -> Strength:
    """Mean and standard deviation over the members of `r_m(preferred) - r_m(other)`."""
    return Strength(jnp.mean(differences, axis=0), jnp.std(differences, axis=0))


def weakest(strength: Float[Array, "pairs"], share: float) -> Bool[Array, "pairs"]:
    """The pairs with which the ensemble agrees least: `share`, 0 to 1, of all."""
    return ranks(strength) < share * strength.shape[0]
