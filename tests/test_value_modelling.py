"""The value of every prefix, fitted by squared error."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rewardjax.models.heads import RewardModel
from rewardjax.recipes.objectives import value_modelling
from rewardjax.recipes.preference_lab import TINY


def test_only_the_steps_on_the_mask_count():
    model = RewardModel(dataclasses.replace(TINY, layers=1))
    params = model.init(jax.random.key(0))
    tokens = jnp.arange(12).reshape(2, 6)
    valid, mask = jnp.ones((2, 6), bool), jnp.arange(6) >= jnp.array([[2], [4]])
    own = model.steps(params, tokens, valid)[..., 0]
    off = jnp.where(mask, jnp.arange(6.0), 100.0)
    batch = {"tokens": tokens, "valid": valid, "mask": mask, "target": own + off}
    found = value_modelling(model)(params, batch).terms["value"]
    squares = np.array([2.0, 3, 4, 5, 4, 5]) ** 2
    np.testing.assert_allclose(found.value, np.mean(squares), rtol=1e-4)
