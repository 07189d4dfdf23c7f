"""Continuous batching: the plain sampler's responses, whatever the schedule."""

import dataclasses
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.models.vision import VisionConfig, VisionLanguageModel
from rewardjax.sampling import engine
from rewardjax.sampling import generate as generation
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.training.sharding import MeshConfig, make_mesh, state_shardings
from rewardjax.trajectory import Prompts

STATIC = ("max_new", "stop", "group_size", "temperature", "top_k", "top_p", "pad_id")
generate = jax.jit(generation.generate, static_argnums=0, static_argnames=STATIC)
continuous = jax.jit(
    engine.generate_continuous,
    static_argnums=0,
    static_argnames=(*STATIC, "slots", "prefill_rows", "buckets"),
)
score = jax.jit(LanguageModel.score, static_argnums=0, static_argnames="temperature")

CONFIG = TransformerConfig(
    vocab=9, layers=1, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=24, context=32
)
LOCAL = {"layers": 2, "scan": True, "spans": ("local", "global"), "window": 3}
NEW, STOP = 9, (1, 2)
TOKENS = jnp.array([[3, 4, 5, 6], [7, 8, 0, 0], [0, 3, 5, 7]])
VALID = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]], bool)
PROMPTS = Prompts(TOKENS, VALID, {"id": jnp.arange(3)})
GREEDY = {"max_new": NEW, "stop": STOP, "group_size": 2, "temperature": 0.0, "pad_id": 8}


def params_of(model):
    """Weights so large that distributions are far from uniform."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.6, x.shape), x.dtype), shapes)


def model_of(**changes):
    model = LanguageModel(TransformerConfig(**{**vars(CONFIG), **changes}))
    return model, params_of(model)


MODEL, PARAMS = model_of()


def sample(model, params, seed=1, order=range(12), limits=(NEW,) * 12, **changes):
    """Four samples a prompt."""
    arguments = {"slots": 3, "max_new": NEW, "stop": STOP, "group_size": 4, "temperature": 2.0}
    arrays = {"order": jnp.array(order), "limits": jnp.array(limits)}
    key = jax.random.key(seed)
    cuts = {"top_k": 6, "top_p": 0.97}
    return continuous(model, params, PROMPTS, key, **arguments | arrays | cuts | changes)


@pytest.fixture(scope="module")
def sampled():
    return sample(MODEL, PARAMS)


def assert_same(found, expected):
    for name in ("tokens", "mask", "valid"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)


def assert_scored(model, params, traj, temperature):
    segments = traj.valid.astype(jnp.int32)
    image = traj.info.get("image")
    found, _ = score(model, params, traj.tokens, segments, temperature=temperature, image=image)
    np.testing.assert_allclose(jnp.where(traj.mask, found, 0), traj.logprobs, atol=1e-4)


@pytest.mark.parametrize("variant", [{}, LOCAL])
def test_greedy_responses_are_those_of_the_plain_sampler(variant):
    model, params = model_of(**variant)
    expected = generate(model, params, PROMPTS, jax.random.key(0), **GREEDY)
    found = continuous(model, params, PROMPTS, jax.random.key(0), slots=2, **GREEDY)
    assert_same(found, expected)
    assert_scored(model, params, found, 1.0)
    np.testing.assert_array_equal(found.info["id"], expected.info["id"])


def test_prompts_may_show_images_and_end_in_them():
    blocks = dataclasses.replace(CONFIG, causal=False)
    vision = VisionConfig(height=8, width=4, patch=4, blocks=blocks)
    model = VisionLanguageModel(CONFIG, vision, image_token=3)
    params = params_of(model)
    tokens = jnp.array([[4, 3, 3], [3, 3, 7], [3, 3, 0]])
    pixels = jnp.linspace(0, 1, 3 * 8 * 4 * 3).reshape(3, 8, 4, 3)
    prompts = Prompts(tokens, tokens != 0, {"image": pixels})
    traj = continuous(model, params, prompts, jax.random.key(0), slots=2, **GREEDY)
    assert_scored(model, params, traj, 1.0)


def test_logprobs_are_those_of_a_full_forward_pass(sampled):
    assert len(set(np.asarray(sampled.lengths).tolist())) > 3
    assert_scored(MODEL, PARAMS, sampled, 2.0)


@pytest.mark.parametrize(
    "schedule",
    [
        {"slots": 8},
        {"order": range(11, -1, -1)},
        {"slots": 100, "prefill_rows": 2, "buckets": (3,)},
    ],
)
def test_samples_do_not_depend_on_the_schedule(schedule, sampled):
    assert_same(sample(MODEL, PARAMS, **schedule), sampled)


def test_samples_differ_between_rows_and_keys(sampled):
    long = np.asarray(sampled.lengths) >= 3  # shorter ones may well coincide
    assert long.sum() >= 5
    responses = np.asarray(sampled.tokens)[long, 4:]
    assert len(np.unique(responses, axis=0)) == long.sum()
    other = sample(MODEL, PARAMS, seed=2)
    assert (other.tokens[long, 4:] != responses).any(axis=1).all()


def test_responses_end_with_a_stop_token_or_at_the_limit(sampled):
    last = np.asarray(sampled.tokens)[np.arange(12), 3 + np.asarray(sampled.lengths)]
    stopped = np.isin(last, STOP)
    assert (stopped | (np.asarray(sampled.lengths) == NEW)).all()
    assert stopped.sum() >= 5
    limits = (1, 9, 2, 3) * 3
    cut = sample(MODEL, PARAMS, limits=limits)
    np.testing.assert_array_equal(cut.lengths, np.minimum(limits, sampled.lengths))
    np.testing.assert_array_equal(cut.tokens[cut.mask], sampled.tokens[cut.mask])


def test_a_prompt_is_read_once_and_decoding_ends_with_the_last_response():
    reads = Counter()

    class Counted(LanguageModel):
        def hidden(self, params, tokens, *rest, **named):
            jax.debug.callback(lambda: reads.update([tokens.shape]))
            return super().hidden(params, tokens, *rest, **named)

    @jax.jit
    def run(order):
        return engine.generate_continuous(
            Counted(CONFIG),
            PARAMS,
            PROMPTS,
            jax.random.key(0),
            slots=2,
            max_new=9,
            stop=(),
            group_size=2,
            order=order,
            limits=jnp.array([4, 1, 1, 2, 1, 3]),
            prefill_rows=2,
            buckets=(3,),
        ).lengths

    # The two short prompts fit in three columns; the longest is read alone, beside a repetition.
    # Two slots: rows 0, 4 and 1, 2, 3, 5 make 4 + 1 and 1 + 1 + 2 + 3 steps; backwards, rows 5, 2,
    # 0 and 4, 3, 1 make 3 + 1 + 4 and 1 + 2 + 1.
    for order, steps in [(range(6), 7), (range(5, -1, -1), 8)]:
        reads.clear()
        run(jnp.array(order)).block_until_ready()
        jax.effects_barrier()
        assert reads == {(2, 3): 1, (2, 4): 1, (2, 1): steps}


def test_sequences_have_the_models_probabilities():
    """All sequences of three tokens over {stop, a, b}: frequencies against exact probabilities."""
    model, params = model_of(vocab=3)
    prompt = Prompts(jnp.array([[1, 2]]), jnp.ones((1, 2), bool))
    n = 4000
    flat = {"temperature": 4.0}
    arguments = {"slots": 500, "max_new": 3, "stop": (0,), "group_size": n, **flat}
    traj = continuous(model, params, prompt, jax.random.key(3), **arguments)
    sequences = [(0,)] + [(a, 0) for a in (1, 2)]
    sequences += [(a, b, c) for a, b in itertools.product((1, 2), repeat=2) for c in range(3)]
    padded = jnp.array([(1, 2, *s, *(0,) * (3 - len(s))) for s in sequences])
    valid = jnp.array([[1] * (2 + len(s)) + [0] * (3 - len(s)) for s in sequences])
    logprobs, _ = score(model, params, padded, valid, **flat)
    expected = np.exp(np.sum(np.asarray(logprobs)[:, 2:], axis=1))
    np.testing.assert_allclose(expected.sum(), 1, atol=1e-5)
    rows = zip(np.asarray(traj.tokens), np.asarray(traj.mask))
    found = [tuple(tokens[mask].tolist()) for tokens, mask in rows]
    counts = np.array([found.count(s) for s in sequences])
    assert counts.sum() == n
    assert n * expected.min() > 5
    chi_square = np.sum((counts - n * expected) ** 2 / (n * expected))
    assert chi_square < 36.1  # the 99.9 % quantile with 14 degrees of freedom


def test_a_policy_with_slots_rolls_out_through_the_engine(sampled):
    policy = LanguagePolicy(MODEL, NEW, STOP, 4, temperature=2.0, top_k=6, top_p=0.97, slots=3)
    assert_same(jax.jit(policy.rollout)(PARAMS, PROMPTS, jax.random.key(1)), sampled)


@pytest.mark.parametrize(("axes", "reductions"), [((2, 4, 1), False), ((2, 2, 2), True)])
def test_shards_of_a_mesh_write_the_same_each_for_itself(axes, reductions):
    """Eight prompts on eight devices, whose rows lie on eight shards or on four of two devices."""
    model, params = model_of(vocab=10, kv_heads=2)
    tokens = jnp.tile(TOKENS, (3, 1))[:8].at[:, 1].set(jnp.arange(8) + 1)
    valid = jnp.tile(VALID, (3, 1))[:8]
    order = jnp.array(np.random.default_rng(0).permutation(16))
    limits = jnp.arange(16) % NEW + 1

    def run(params):
        prompts = Prompts(tokens, valid, {"id": jnp.arange(8)})
        return engine.generate_continuous(
            model,
            params,
            prompts,
            jax.random.key(5),
            slots=8,
            max_new=NEW,
            stop=STOP,
            group_size=2,
            temperature=2.0,
            order=order,
            limits=limits,
            prefill_rows=4,
        )

    expected = jax.jit(run)(params)
    mesh = make_mesh(MeshConfig(*axes))
    boxed = jax.eval_shape(model.boxed_init, jax.random.key(0))
    with jax.set_mesh(mesh):
        program = jax.jit(run).lower(jax.device_put(params, state_shardings(mesh, boxed))).compile()
        found = program(jax.device_put(params, state_shardings(mesh, boxed)))
    assert_same(found, expected)
    assert len(set(np.asarray(expected.lengths).tolist())) > 3
    first_rows = {shard.index[0].start for shard in found.tokens.addressable_shards}
    assert len(first_rows) == axes[0] * axes[1]
    # Only where devices share a row's weights have they anything to tell each other.
    assert ("all-reduce" in program.as_text()) == reductions


def test_prompts_that_shards_cannot_share_out_are_decoded_by_all(sampled):
    with jax.set_mesh(make_mesh(MeshConfig(2, 4, 1))):
        assert_same(sample(MODEL, PARAMS), sampled)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new": 29}, "sequence of 33 tokens is longer than the model's context=32"),
        ({"slots": 0}, "slots: expected at least 1, found 0"),
        ({"max_new": 0}, "max_new: expected at least 1, found 0"),
        ({"prefill_rows": 0}, "prefill_rows: expected at least 1, found 0"),
        ({"buckets": (2, 5)}, r"buckets: expected widths from 1 to 4, found \(2, 5\)"),
        ({"limits": jnp.ones(3, int)}, r"limits: expected one entry a row, \(12,\), found \(3,\)"),
        ({"order": jnp.arange(3)}, r"order: expected one entry a row, \(12,\), found \(3,\)"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {"slots": 3, "max_new": NEW, "stop": STOP, "group_size": 4, **changes}
    with pytest.raises(ValueError, match=message):
        engine.generate_continuous(MODEL, PARAMS, PROMPTS, jax.random.key(0), **arguments)
