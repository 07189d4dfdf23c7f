import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.models.projection import project


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 0)])
def test_product_and_gradients_are_those_of_matmul(batch):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (*batch, 4))
    weight = jax.random.normal(keys[1], (4, 6))
    cotangent = jax.random.normal(keys[2], (*batch, 6))
    ours, pull = jax.vjp(project, x, weight)
    plain, pull_plain = jax.vjp(jnp.matmul, x, weight)
    np.testing.assert_array_equal(ours, plain)
    for found, expected in zip(pull(cotangent), pull_plain(cotangent), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_gradients_keep_their_dtype():
    x, weight = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 2), jnp.bfloat16)
    out, pull = jax.vjp(project, x, weight)
    assert out.dtype == jnp.bfloat16
    assert [g.dtype for g in pull(out)] == [jnp.bfloat16, jnp.bfloat16]


def test_remat_saves_its_products():
    """`dots_with_no_batch_dims_saveable` sees the product inside."""
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    weight = jnp.ones((4, 4))

    def layer(x):
        return jnp.sum(jnp.sin(project(jnp.sin(x), weight)))

    def products(function):
        text = str(jax.make_jaxpr(jax.grad(function))(jnp.ones((3, 4))))
        return text.count("dot_general")

    saved = products(jax.checkpoint(layer, policy=policy))
    assert saved < products(jax.checkpoint(layer))
