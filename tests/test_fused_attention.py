"""Kernels of attention against the plain products, and which of them a program is lowered to."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.compilation.flops import matmul_flops
from rewardjax.compilation.hlo import traffic
from rewardjax.models.attention import Visibility, attend
from rewardjax.models.fused_attention import (
    attend_cudnn,
    attend_fused,
    attend_splash,
    cudnn_takes,
)
from rewardjax.training.sharding import MeshConfig, make_mesh

SCALE = 0.3
# Two documents and padding, padding in front, nothing but padding.
SEGMENTS = jnp.array([[1] * 30 + [2] * 25 + [0] * 5, [0] * 20 + [1] * 40, [0] * 60])
LONG = jnp.array([[1] * 300 + [2] * 250 + [0] * 50])
CASES = {
    "causal": (SEGMENTS, 4, 2, {}, None),
    "window": (SEGMENTS, 4, 2, {"window": 7}, None),
    "softcap": (SEGMENTS, 4, 1, {}, 2.0),
    "bidirectional": (SEGMENTS, 2, 2, {"causal": False}, None),
    "near": (SEGMENTS, 2, 2, {"causal": False, "window": 5}, None),
    "blocks": (LONG, 2, 1, {}, None),
    "window of blocks": (LONG, 2, 1, {"window": 64}, None),
}


def arguments(segments, heads, kv_heads, seen, dtype="float32", head_dim=16):
    """Queries, keys, values, and who sees whom."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [
        (segments.shape[0], n, segments.shape[1], head_dim) for n in (heads, kv_heads, kv_heads)
    ]
    q, k, v = (jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes))
    return q, k, v, Visibility(segments, segments, **seen)


def results(function, q, k, v, visible):
    """What it gives, and the gradients of a sum with random weights."""

    def weighted(q, k, v):
        y = function(q, k, v, visible)
        return jnp.sum(y * jax.random.normal(jax.random.key(1), y.shape)), y

    @jax.jit
    def run(q, k, v):
        gradients, y = jax.grad(weighted, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return y, *gradients

    return run(q, k, v)


def assert_close(found, expected, atol=1e-5):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_splash_attention_and_its_gradients_equal_the_plain_ones(name):
    segments, heads, kv_heads, seen, cap = CASES[name]
    given = arguments(segments, heads, kv_heads, seen)
    found = results(partial(attend_splash, scale=SCALE, softcap=cap, interpret=True), *given)
    expected = results(partial(attend, scale=SCALE, softcap=cap), *given)
    assert_close(found, expected)
    padding = np.asarray(segments == 0)[:, None, :, None]
    assert all(not np.any(np.where(padding, x, 0)) for x in found)


@pytest.mark.parametrize("name", ["causal", "window", "bidirectional"])
def test_the_call_of_cudnn_means_what_the_plain_products_compute(name):
    segments, heads, kv_heads, seen, _ = CASES[name]
    given = arguments(segments, heads, kv_heads, seen)
    found = results(partial(attend_cudnn, scale=SCALE, implementation="xla"), *given)
    assert_close(found, results(partial(attend, scale=SCALE), *given))


def test_what_cudnn_takes():
    half, full = jnp.zeros((1, 2, 6, 64), jnp.bfloat16), jnp.zeros((1, 2, 6, 64))
    assert cudnn_takes(half, None)
    assert not cudnn_takes(full, None)
    assert not cudnn_takes(half, 50.0)
    assert not cudnn_takes(half[..., :20], None)
    assert not cudnn_takes(half[:, :, :5], None)
    assert not cudnn_takes(jnp.zeros((1, 2, 6, 256), jnp.bfloat16), None)


@pytest.mark.parametrize("chunk", [None, 16])
def test_without_a_kernel_it_is_the_plain_one(chunk):
    given = arguments(SEGMENTS, 4, 2, {"window": 7})
    plain = partial(attend, scale=SCALE, chunk=chunk)
    found = results(partial(attend_fused, scale=SCALE, chunk=chunk), *given)
    assert_close(found, results(plain, *given), atol=1e-6)


def test_with_a_cache_it_is_the_plain_one():
    q, k, v, visible = arguments(SEGMENTS, 4, 2, {})
    visible = Visibility(SEGMENTS[:, :3], SEGMENTS, jnp.arange(3) + 40)
    given = q[:, :, :3], k, v, visible
    program = jax.make_jaxpr(partial(attend_fused, scale=SCALE))(*given)
    assert "pallas_call" not in str(program)
    found = attend_fused(*given, scale=SCALE)
    np.testing.assert_array_equal(found, attend(*given, scale=SCALE))


def lowered(platform, function, *given):
    """The text of a gradient's program for a platform that need not be there."""
    q, k, v, visible = given
    loss = jax.grad(lambda q, k, v: jnp.sum(function(q, k, v, visible)), argnums=(0, 1, 2))
    return jax.jit(loss).trace(q, k, v).lower(lowering_platforms=(platform,)).as_text()


def test_the_program_of_a_tpu_holds_neither_scores_nor_mask():
    given = arguments(LONG, 2, 1, {})
    square = re.compile(r"tensor<(\d+x)*600x600x")
    assert square.search(lowered("tpu", partial(attend, scale=SCALE), *given))
    text = lowered("tpu", partial(attend_fused, scale=SCALE), *given)
    assert text.count("@tpu_custom_call") == 3  # forwards; queries; keys and values
    assert not square.search(text)
    assert "@tpu_custom_call" not in lowered("cpu", partial(attend_fused, scale=SCALE), *given)


@pytest.mark.parametrize("kernel", ["platform's", "splash"])
def test_on_a_mesh_each_device_has_its_rows_and_heads(kernel):
    segments = jnp.concatenate([SEGMENTS, SEGMENTS[:1]])
    given = arguments(segments, 4, 2, {})
    function = partial(attend_fused, scale=SCALE)
    if kernel == "splash":
        function = partial(attend_splash, scale=SCALE, interpret=True)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        found = results(function, *given)
        if kernel == "splash":
            assert found[0].sharding.shard_shape(found[0].shape) == (1, 2, 60, 16)
    assert_close(found, results(partial(attend, scale=SCALE), *given))


@pytest.mark.parametrize("name", ["causal", "window of blocks", "near"])
def test_each_device_has_its_part_of_the_queries(name):
    """Four parts of 15 or 150 queries, padded to 128 or 256, and two of the heads."""
    segments, heads, kv_heads, seen, cap = CASES[name]
    kv_heads = max(kv_heads, 2)
    given = arguments(segments, heads, kv_heads, seen)
    function = partial(attend_splash, scale=SCALE, softcap=cap, interpret=True)
    with jax.set_mesh(make_mesh(MeshConfig(tensor=2, sequence=4))):
        found = results(function, *given)
        split = results(partial(attend, scale=SCALE, chunk=7), *given)
    expected = results(partial(attend, scale=SCALE), *given)
    assert_close(found, expected)
    assert_close(split, expected)
    shape = found[0].shape
    local = (shape[0], heads // 2, shape[2] // 4, 16)
    assert found[0].sharding.shard_shape(shape) == local
    assert split[0].sharding.shard_shape(shape)[2] == local[2]


def test_rows_that_the_mesh_does_not_divide_take_the_plain_path():
    given = arguments(SEGMENTS, 4, 2, {})  # three rows
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        program = jax.make_jaxpr(partial(attend_fused, scale=SCALE))(*given)
    assert "pallas_call" not in str(program)


def test_operations_of_a_kernel_are_counted():
    given = arguments(LONG, 2, 1, {})
    plain, kernel = (partial(f, scale=SCALE) for f in (attend, attend_fused))
    # Scores and their product with the values: 2 heads, 768 = 2 * 384 queries and keys, 16 wide.
    product = 2 * 2 * 768 * 768 * 16
    assert matmul_flops(kernel, *given) == 2 * product
    assert matmul_flops(kernel, *given, platform="cpu") == matmul_flops(plain, *given)

    def gradient(q, k, v, visible):
        return jax.grad(lambda q, k, v: jnp.sum(kernel(q, k, v, visible)), argnums=(0, 1, 2))(
            q, k, v
        )

    # Backwards: scores and the weights' gradients twice, and the gradients of queries, keys, values;
    # and the mixed values times their own gradients.
    assert matmul_flops(gradient, *given) == (2 + 7) * product + 2 * 2 * 768 * 16
    segments = jnp.concatenate([LONG, LONG, LONG, LONG])
    given = arguments(segments, 4, 2, {})
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        assert matmul_flops(kernel, *given) == 4 * 2 * 2 * product


def test_traffic_of_a_kernel_is_what_goes_in_and_out_once_a_call():
    text = """
ENTRY %main (q: bf16[2,8,16], k: bf16[2,8,16]) -> bf16[2,8,16] {
  %q = bf16[2,8,16]{2,1,0} parameter(0)
  %k = bf16[2,8,16]{2,1,0} parameter(1)
  %both = (bf16[2,8,16]{2,1,0}, f32[2,8,4]{2,1,0}) custom-call(%q, %k), custom_call_target="tpu_custom_call"
  ROOT %mixed = bf16[2,8,16]{2,1,0} get-tuple-element(%both), index=0
}
"""
    assert traffic(text).memory == 3 * 2 * (2 * 8 * 16) + 4 * (2 * 8 * 4)
