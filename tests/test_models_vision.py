"""A decoder that reads images: the same model when it samples and when it is trained."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import partitioning
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.models.vision import VisionConfig, VisionEncoder, VisionLanguageModel, patchify
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.trajectory import Prompts

TEXT = TransformerConfig(
    vocab=9, layers=2, width=16, heads=2, kv_heads=2, head_dim=8, mlp_width=24, context=24
)
VISION = VisionConfig(
    height=8, width=12, patch=4, blocks=dataclasses.replace(TEXT, layers=1, causal=False)
)
IMAGE = 3
MODEL = VisionLanguageModel(TEXT, VISION, IMAGE)
PARAMS = jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(0)))
SHOWN = [IMAGE] * VISION.length
TOKENS = jnp.array([[4, *SHOWN, 5], [0, 6, *SHOWN], [7, *SHOWN, 0]])
PIXELS = jax.random.uniform(jax.random.key(1), (3, 8, 12, 3))
PROMPTS = Prompts(TOKENS, TOKENS != 0, {"image": PIXELS})
POLICY = LanguagePolicy(MODEL, max_new=5, stop=(1,), group_size=2)


@pytest.fixture(scope="module")
def traj():
    return jax.jit(POLICY.rollout)(PARAMS, PROMPTS, jax.random.key(2))


def test_patches_are_read_row_by_row():
    image = jnp.arange(8 * 12 * 3.0).reshape(1, 8, 12, 3)
    patches = patchify(image, 4)
    assert patches.shape == (1, VISION.patches, 48)
    np.testing.assert_array_equal(patches[0, 1], image[0, :4, 4:8].reshape(-1))
    np.testing.assert_array_equal(patches[0, 3], image[0, 4:, :4].reshape(-1))


POOLED = dataclasses.replace(VISION, patch=2, pooled=6)


@pytest.mark.parametrize(("scan", "vision"), [(False, VISION), (True, VISION), (False, POOLED)])
def test_sampled_logprobs_equal_the_training_forward_pass(scan, vision):
    model = VisionLanguageModel(dataclasses.replace(TEXT, scan=scan), vision, IMAGE)
    params = jax.tree.map(lambda x: 2 * x, model.init(jax.random.key(0)))
    policy = dataclasses.replace(POLICY, model=model)
    traj = jax.jit(policy.rollout)(params, PROMPTS, jax.random.key(2))
    assert traj.info["image"].shape == (6, 8, 12, 3)
    found = jax.jit(policy.score)(params, traj).logprobs
    np.testing.assert_allclose(jnp.where(traj.mask, found, 0), traj.logprobs, atol=1e-4)


def test_scanned_blocks_of_the_encoder_equal_unrolled_ones():
    blocks = dataclasses.replace(VISION.blocks, layers=3)
    scanned = dataclasses.replace(blocks, scan=True, remat="full")
    encoders = [VisionEncoder(dataclasses.replace(VISION, blocks=b), 16) for b in (blocks, scanned)]
    params = nn.unbox(encoders[0].init(jax.random.key(3), PIXELS)["params"])
    layers = [params[f"block_{i}"] for i in range(3)]
    rest = {name: x for name, x in params.items() if not name.startswith("block_")}
    stacked = rest | {"groups": {"block_0": jax.tree.map(lambda *x: jnp.stack(x), *layers)}}
    plain, found = (
        jax.jit(encoder.apply)({"params": own}, PIXELS)
        for encoder, own in zip(encoders, (params, stacked))
    )
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_the_image_matters_and_each_row_sees_its_own(traj):
    score = jax.jit(POLICY.score)
    before = score(PARAMS, traj).logprobs
    other = traj.with_info(image=traj.info["image"].at[2].set(0.0))
    changed = jnp.any(jnp.abs(score(PARAMS, other).logprobs - before) > 1e-4, axis=1)
    assert changed.tolist() == [False, False, True, False, False, False]


def test_patches_go_to_the_placeholders_in_order():
    bound = MODEL.module.bind({"params": PARAMS})
    values, here = bound.placed(TOKENS, PIXELS)
    np.testing.assert_array_equal(here, TOKENS == IMAGE)
    patches = bound.encoder(PIXELS)
    for row, first in enumerate([1, 2, 1]):
        found = values[row, first : first + VISION.length]
        np.testing.assert_allclose(found, patches[row], atol=1e-6)


def test_a_placeholder_in_a_response_is_a_token_like_any_other():
    tokens = jnp.array([[4, *SHOWN, 5, IMAGE, 6]])
    _, here = MODEL.module.bind({"params": PARAMS}).placed(tokens, PIXELS[:1])
    assert here[0].tolist() == [False, *[True] * VISION.length, False, False, False]


@pytest.mark.parametrize("vision", [VISION, POOLED])
def test_gradients_reach_every_weight_of_the_encoder(traj, vision):
    model = dataclasses.replace(MODEL, vision=vision)
    policy = dataclasses.replace(POLICY, model=model)

    def loss(params):
        return jnp.sum(jnp.where(traj.mask, policy.score(params, traj).logprobs, 0.0))

    found = jax.jit(jax.grad(loss))(model.init(jax.random.key(0)))["encoder"]
    assert ("maps" in found) == (vision is POOLED)
    for path, gradient in jax.tree.leaves_with_path(found):
        assert float(jnp.max(jnp.abs(gradient))) > 1e-7, path


def test_pooled_embeddings_do_not_depend_on_the_order_of_equal_patches():
    config = dataclasses.replace(POOLED, blocks=dataclasses.replace(TEXT, layers=0, causal=False))
    model = VisionLanguageModel(TEXT, config, IMAGE)
    params = model.init(jax.random.key(0))
    params["encoder"]["position"] = jnp.zeros_like(params["encoder"]["position"])
    encoder = model.module.bind({"params": params}).encoder
    moved = jnp.roll(PIXELS, 4, axis=2)  # by two patches
    np.testing.assert_allclose(encoder(moved), encoder(PIXELS), atol=1e-5)
    assert encoder(PIXELS).shape == (3, 6, TEXT.width)


def test_without_an_image_the_decoder_is_the_text_model():
    text = LanguageModel(TEXT)
    tokens = jnp.array([[4, 5, 6, 7, 8]])
    segments = jnp.ones_like(tokens)
    expected, _ = text.score(PARAMS["decoder"], tokens, segments)
    found, _ = MODEL.score(PARAMS, tokens, segments)
    np.testing.assert_array_equal(found, expected)


def test_parameters_have_logical_axes_that_the_mesh_knows():
    for path, leaf in jax.tree.leaves_with_path(
        MODEL.boxed_init(jax.random.key(0)),
        is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
    ):
        assert len(partitioning.spec(leaf.names)) == leaf.value.ndim, path


def test_an_image_of_another_size_is_refused():
    wrong = Prompts(TOKENS, TOKENS != 0, {"image": jnp.zeros((3, 8, 8, 3))})
    message = r"expected height, width and channels \(8, 12, 3\), found \(8, 8, 3\)"
    with pytest.raises(ValueError, match=message):
        POLICY.rollout(PARAMS, wrong, jax.random.key(0))


def test_rows_that_cannot_hold_an_image_are_refused():
    tokens = jnp.full((3, 4), IMAGE)
    with pytest.raises(ValueError, match=r"expected 6 placeholders a row.*found rows of 4"):
        MODEL.score(PARAMS, tokens, jnp.ones_like(tokens), image=PIXELS)


def test_a_text_model_refuses_an_image():
    with pytest.raises(
        ValueError, match=r"expected none \(a text model\), found shape \(3, 8, 12, 3\)"
    ):
        LanguageModel(TEXT).score(PARAMS["decoder"], TOKENS, jnp.ones_like(TOKENS), image=PIXELS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"patch": 5}, "patch=5 does not tile 8 x 12"), ({"blocks": TEXT}, "causal: expected False")],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(VISION, **settings)
