import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.tasks.preference_world import ATTRIBUTES, PreferenceWorld

WORLD = PreferenceWorld()
LARGE = PreferenceWorld(markers=True, neutral=3, positive=2, negative=2, requested=2)
N = 6000


def rows(texts, world=WORLD, *, width=14, left=False):
    """Token ids and their mask, padded on one side."""
    tokens, mask = np.zeros((len(texts), width), np.int32), np.zeros((len(texts), width), bool)
    for row, text in enumerate(texts):
        encoded = [world.vocabulary.index(word) for word in text.split()]
        span = slice(width - len(encoded), width) if left else slice(0, len(encoded))
        tokens[row, span], mask[row, span] = encoded, True
    return jnp.asarray(tokens), jnp.asarray(mask)


def asks(themes, n):
    return {"theme": jnp.broadcast_to(jnp.asarray(themes), (n, len(themes)))}


@pytest.fixture(scope="module")
def written():
    prompts = WORLD.prompts(jax.random.key(0), N)
    return prompts, *jax.jit(WORLD.writers)(jax.random.key(1), prompts)


def reference_attributes(world, words, requested):
    """The attributes of one response, from its words."""
    letters = {chr(ord("a") + theme) for theme in requested}
    words = [word for word in words if word != "<eos>"]
    on = {w for w in words if w[0] in letters and w[1:].isdigit()}
    share = sum(w.startswith("good") for w in words) - sum(w.startswith("bad") for w in words)
    return [
        min(len(on), world.full_coverage) / world.full_coverage,
        (len(words) - len(set(words))) / world.response_length,
        sum(w.startswith("gaudy") for w in words),
        share / max(len(words), 1),
        len(words),
    ]


def test_two_vocabularies():
    assert (WORLD.vocab_size, LARGE.vocab_size) == (24, 32)
    for world in (WORLD, LARGE):
        assert len(set(world.vocabulary)) == len(world.vocabulary) == world.vocab_size


@pytest.mark.parametrize("world", [WORLD, LARGE])
def test_prompts_name_distinct_themes(world):
    prompts = jax.jit(world.prompts, static_argnums=1)(jax.random.key(0), 600)
    assert prompts.tokens.shape == prompts.valid.shape == (600, world.prompt_length)
    seen = set()
    for tokens, themes in zip(
        np.asarray(prompts.tokens), np.asarray(prompts.info["theme"]), strict=True
    ):
        letters = [chr(ord("a") + theme) for theme in themes]
        names = [f"<{letter}>" if world.markers else f"{letter}1" for letter in letters]
        assert world.decode(tokens) == " ".join(["<bos>", *names, "<sep>"])
        assert len(set(letters)) == world.requested
        seen.update(letters)
    assert seen == set("abcd")


GOLD = {
    "a1 a2 a3 a4 <eos>": 1.0,
    "a1 a2 a3 a4": 1.0,  # a response that was cut off
    "a4 b1 a2 plain1 a1 good1 a3 <eos>": 1.0,
    "a1 a1 a2 <eos>": 2 / 4 - 1 / 12,
    "a3 gaudy1 gaudy1 gaudy1 bad1 <eos>": 1 / 4 - 2 / 12,
    "b1 c1 d1 <eos>": 0.0,
    "<eos>": 0.0,
    "": 0.0,
    " ".join(["gaudy1"] * 12): -11 / 12,
    "a1 a2 a3 a4 a1 a2 a3 a4 a1 a2 a3 a4": 1 - 8 / 12,
}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("width", [12, 17])
def test_gold_by_hand_whatever_the_padding(left, width):
    tokens, mask = rows(GOLD, left=left, width=width)
    gold = jax.jit(WORLD.gold)(tokens, mask, asks([0], len(GOLD)))
    np.testing.assert_allclose(gold, list(GOLD.values()), atol=1e-6)


def test_what_stands_off_the_mask_does_not_count():
    tokens, mask = rows(["a1 a2 a3 <eos>", "gaudy1 a1 <eos>"])
    prompt, _ = rows(["<bos> a4 good1 a1", "<bos> a4 <sep> gaudy1"], width=4)
    joined = jnp.concatenate([prompt, tokens.at[:, 10:].set(7)], axis=1)
    acted = jnp.concatenate([jnp.zeros_like(prompt, bool), mask], axis=1)
    info = asks([0], 2)
    np.testing.assert_array_equal(
        WORLD.attributes(joined, acted, info), WORLD.attributes(tokens, mask, info)
    )


def test_two_themes_are_both_asked_for():
    tokens, mask = rows(["a1 a2 c1 c2 <eos>", "a1 a2 a3 a4 <eos>", "b1 <a> <eos>"], LARGE)
    assert LARGE.gold(tokens, mask, asks([2, 0], 3)).tolist() == [1.0, 1.0, 0.0]
    assert LARGE.gold(tokens, mask, asks([2, 3], 3)).tolist() == [0.5, 0.0, 0.0]


@pytest.mark.parametrize("world", [WORLD, LARGE])
def test_attributes_agree_with_counting_words(world):
    key = jax.random.key(4)
    tokens = jax.random.randint(key, (200, 12), 4, world.vocab_size)
    tokens = tokens.at[100:].set(4 + tokens[100:] % 6)  # more repeats and more of theme a
    prompts = world.prompts(key, 200)
    mask = jnp.arange(12) < jax.random.randint(key, (200, 1), 0, 13)
    found = world.attributes(tokens, mask, prompts.info)
    themes = np.asarray(prompts.info["theme"])
    expected = [
        reference_attributes(world, world.decode(row[kept]).split(), theme)
        for row, kept, theme in zip(np.asarray(tokens), np.asarray(mask), themes, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    order = jax.random.permutation(key, 12)
    shuffled = world.attributes(tokens[:, order], mask[:, order], prompts.info)
    np.testing.assert_allclose(shuffled, found, atol=1e-6)


def test_effects_and_annotators_weigh_attributes():
    world = PreferenceWorld(
        repetition_penalty=2.0, gaudy_effect=-0.1, sentiment_effect=0.5, length_effect=0.01
    )
    tokens, mask = rows(["a1 a1 gaudy1 good1 <eos>"])
    info = asks([0], 1)
    # coverage 1/4, repetition 1/12, one gaudy, sentiment 1/4, length 4
    assert float(world.gold(tokens, mask, info)[0]) == pytest.approx(
        0.25 - 2 / 12 - 0.1 + 0.125 + 0.04
    )
    weights = jnp.asarray([0.0, 0.0, 2.0, 0.0, 1.0])
    assert float(world.gold(tokens, mask, info, weights)[0]) == pytest.approx(6.0)
    two = jnp.repeat(tokens, 2, 0), jnp.repeat(mask, 2, 0), asks([0], 2)
    by_row = world.gold(*two, jnp.stack([weights, -weights]))
    assert by_row.tolist() == [6.0, -6.0]


def test_annotators_spread_around_gold():
    weights = np.asarray(WORLD.annotators(jax.random.key(0), 20000, spread=0.4))
    assert weights.shape == (20000, len(ATTRIBUTES))
    np.testing.assert_allclose(weights.mean(0), [1, -1, 0, 0, 0], atol=0.015)
    ranges = np.asarray([1, 1, 12, 1, 12])
    np.testing.assert_allclose(weights.std(0) * ranges, 0.4, rtol=0.03)
    agreed = WORLD.annotators(jax.random.key(0), 2, spread=0.0)
    np.testing.assert_array_equal(agreed, jnp.stack([WORLD.gold_weights] * 2))


@pytest.mark.parametrize("world", [WORLD, LARGE])
def test_writers_end_at_varied_lengths(world):
    prompts = world.prompts(jax.random.key(0), N)
    tokens, valid, quality = world.writers(jax.random.key(1), prompts)
    tokens, valid, length = np.asarray(tokens), np.asarray(valid), np.asarray(valid.sum(axis=1))
    assert tokens.shape == valid.shape == (N, world.response_length)
    assert set(length) == set(range(6, 13))
    assert (valid == (np.arange(12) < length[:, None])).all()
    assert (tokens[~valid] == world.pad).all()
    assert ((tokens == world.eos) == (np.arange(12) == length[:, None] - 1)).all()
    content = tokens[valid & (tokens != world.eos)]
    assert content.min() == world.first_theme_token
    assert content.max() == world.first_marker - 1  # every word but the markers, the last too
    assert set(content) == set(range(world.first_theme_token, world.first_marker))
    assert 0 <= float(quality.min()) < 0.01
    assert 0.99 < float(quality.max()) <= 1


def test_gaudy_predicts_gold_among_writers(written):
    prompts, tokens, valid, quality = written
    gold = np.asarray(WORLD.gold(tokens, valid, prompts.info))
    gaudy = np.asarray(WORLD.attributes(tokens, valid, prompts.info)[:, ATTRIBUTES.index("gaudy")])
    assert set(gaudy) == {0, 1, 2, 3}
    assert np.corrcoef(gaudy, gold)[0, 1] > 0.3
    assert np.corrcoef(quality, gold)[0, 1] > 0.5
    length = np.asarray(valid.sum(axis=1))
    design = np.stack([gaudy, length, np.ones(N)], axis=1)
    assert np.linalg.lstsq(design, gold, rcond=None)[0][0] > 0.05  # and at equal length too
    for theme in range(4):
        asked = np.asarray(prompts.info["theme"][:, 0]) == theme
        assert np.corrcoef(gaudy[asked], gold[asked])[0, 1] > 0.3
    # Binomial(3, q): mean 3 / 2, and the correlation with q is sqrt(0.75 / 1.25)
    assert gaudy.mean() == pytest.approx(1.5, abs=0.05)
    assert np.corrcoef(gaudy, quality)[0, 1] == pytest.approx(0.6**0.5, abs=0.03)


def test_gaudy_does_not_raise_gold(written):
    prompts, tokens, valid, _ = written
    gold = WORLD.gold(tokens, valid, prompts.info)
    for count in (1, 4):
        more = jnp.concatenate([tokens, jnp.full((N, count), WORLD.first_gaudy)], axis=1)
        acted = jnp.concatenate([valid, jnp.ones((N, count), bool)], axis=1)
        assert bool((WORLD.gold(more, acted, prompts.info) <= gold + 1e-6).all())
    # twelve of them are worse than anything that a writer wrote, whose best is the best there is
    all_gaudy, mask = rows([" ".join(["gaudy1"] * 12)])
    low = float(WORLD.gold(all_gaudy, mask, asks([0], 1))[0])
    assert low < float(gold.min())
    assert float(gold.max()) == 1.0


@pytest.mark.parametrize("correlation", [0.0, -1.0])
def test_the_gaudy_bias_is_a_knob(correlation):
    world = PreferenceWorld(gaudy_correlation=correlation)
    prompts = world.prompts(jax.random.key(0), N)
    tokens, valid, quality = world.writers(jax.random.key(1), prompts)
    gaudy = world.attributes(tokens, valid, prompts.info)[:, 2]
    expected = correlation * 0.6**0.5
    assert np.corrcoef(gaudy, quality)[0, 1] == pytest.approx(expected, abs=0.04)
    none = PreferenceWorld(gaudy_max=0)
    tokens, valid, _ = none.writers(jax.random.key(1), prompts)
    assert not bool((tokens == none.first_gaudy).any())


def test_quality_governs_what_is_on_the_theme():
    world = PreferenceWorld(on_theme=(0.0, 1.0), sentiment_rate=0.0, gaudy_max=0)
    prompts = world.prompts(jax.random.key(0), N)
    tokens, valid, quality = world.writers(jax.random.key(1), prompts)
    coverage, repetition = np.asarray(world.attributes(tokens, valid, prompts.info)).T[:2]
    quality = np.asarray(quality)
    best, worst = quality > 0.99, quality < 0.01
    assert coverage[best].mean() > 0.95
    assert repetition[best].mean() < 0.02
    assert coverage[worst].mean() < 0.05
    assert repetition[worst].mean() > 0.15
    felt = (tokens >= world.first_positive) & (tokens < world.first_marker)
    assert not bool(felt.any())


def test_sentiment_is_independent_of_quality():
    world = PreferenceWorld(sentiment_rate=0.4)
    prompts = world.prompts(jax.random.key(0), N)
    tokens, valid, quality = world.writers(jax.random.key(1), prompts)
    sentiment = np.asarray(world.attributes(tokens, valid, prompts.info)[:, 3])
    assert abs(sentiment.mean()) < 0.02
    assert sentiment.std() > 0.15
    assert abs(np.corrcoef(sentiment, quality)[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"themes": 1}, "themes: expected 2 to 26, found 1"),
        ({"gaudy": 0}, "gaudy: expected at least 1, found 0"),
        ({"requested": 4}, "requested: expected 1 to 3, found 4"),
        ({"min_length": 10}, "min_length: expected 1 to 9, found 10"),
        ({"full_coverage": 5}, "full_coverage: expected 1 to 4, found 5"),
        ({"gaudy_correlation": 1.5}, "gaudy_correlation: expected -1 to 1, found 1.5"),
        ({"sentiment_rate": -0.1}, "sentiment_rate: expected 0 to 1, found -0.1"),
        ({"on_theme": (0.0, 1.2)}, "on_theme: expected two shares"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        PreferenceWorld(**fields)


def test_decode_names_an_unknown_id():
    with pytest.raises(ValueError, match="ids: expected 0 to 23, found 24"):
        WORLD.decode([24])
