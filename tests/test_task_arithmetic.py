import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.tasks.arithmetic import Arithmetic
from rewardjax.trajectory import Prompts, Trajectory

TASK = Arithmetic()
N = 150


def ids(text, task=TASK):
    return [task.vocabulary.index(word) for word in text.split()]


def rows(texts, width, *, left=False):
    """Token ids and their mask, padded on one side."""
    tokens, mask = np.zeros((len(texts), width), np.int32), np.zeros((len(texts), width), bool)
    for row, text in enumerate(texts):
        encoded = ids(text)
        span = slice(width - len(encoded), width) if left else slice(0, len(encoded))
        tokens[row, span], mask[row, span] = encoded, True
    return jnp.asarray(tokens), jnp.asarray(mask)


def trajectory(tokens, mask, info):
    return Trajectory(tokens, mask, mask, jnp.zeros(tokens.shape), info=info)


def written(responses, partials):
    """Trajectories of responses to expressions with these true partials."""
    tokens, mask = rows(responses, 16)
    padded = [values + [-1] * (3 - len(values)) for values in partials]
    info = {
        "partials": jnp.asarray(padded),
        "steps": jnp.asarray([len(values) for values in partials]),
        "answer": jnp.asarray([values[-1] for values in partials]),
    }
    return trajectory(tokens, mask, info)


def join(prompts, tokens, valid):
    """Prompt and response in one row, as a sampler leaves them."""
    mask = jnp.concatenate([jnp.zeros_like(prompts.valid), valid], axis=1)
    return trajectory(jnp.concatenate([prompts.tokens, tokens], axis=1), mask, prompts.info)


def evaluate(words, modulus):
    """An independent left-to-right evaluation of `a op b op c`."""
    value, results = int(words[0]), []
    for operator, operand in zip(words[1::2], words[2::2], strict=True):
        number = int(operand)
        value = {"+": value + number, "-": value - number, "*": value * number}[operator] % modulus
        results.append(value)
    return results


@pytest.mark.parametrize("task", [TASK, Arithmetic(23, 2, 5, "*-"), Arithmetic(2, 1, 1, "+")])
def test_prompts_hold_the_expression_and_its_results(task):
    prompts = jax.jit(task.prompts, static_argnums=1)(jax.random.key(0), N)
    tokens, valid, info = jax.device_get((prompts.tokens, prompts.valid, prompts.info))
    assert tokens.shape == (N, task.prompt_length)
    for row in range(N):
        steps = info["steps"][row]
        length = valid[row].sum()
        assert valid[row, :length].all()
        assert not tokens[row, length:].any()
        words = task.decode(tokens[row]).split()
        assert len(words) == length == 2 * steps + 3
        assert (words[0], words[-1]) == ("<bos>", "=")
        results = evaluate(words[1:-1], task.modulus)
        assert info["partials"][row].tolist() == results + [-1] * (task.max_steps - steps)
        assert info["answer"][row] == results[-1]
        operands = [int(word) for word in words[1:-1:2]]
        assert info["operands"][row, : steps + 1].tolist() == operands
        symbols = "".join(task.operations[i] for i in info["operators"][row, :steps])
        assert symbols == "".join(words[2:-1:2])
    assert set(info["steps"]) == set(range(task.min_steps, task.max_steps + 1))


def test_a_curriculum_sets_the_steps():
    steps = jnp.asarray([3, 1, 2])
    prompts = jax.jit(TASK.prompts, static_argnums=1)(jax.random.key(0), 3, steps=steps)
    assert prompts.info["steps"].tolist() == [3, 1, 2]
    assert prompts.valid.sum(axis=1).tolist() == [9, 5, 7]


def test_demonstrations_write_every_step_and_verify():
    prompts = TASK.prompts(jax.random.key(0), N)
    tokens, valid = jax.jit(TASK.demonstrations)(jax.random.key(1), prompts)
    assert tokens.shape == (N, TASK.max_response)
    info = jax.device_get(prompts.info)
    for row in range(N):
        partials = [str(value) for value in info["partials"][row, : info["steps"][row]]]
        words = TASK.decode(tokens[row]).split()
        assert int(valid[row].sum()) == len(words)
        bare = [word for word in words if word not in TASK.connectives]
        assert " ".join(bare) == " ; ".join(partials) + f" # {partials[-1]} <eos>"
        for place, word in enumerate(words):
            if word in TASK.connectives:
                assert words[place + 1] in (";", "#")
    traj = join(prompts, tokens, valid)
    np.testing.assert_array_equal(jax.jit(TASK.verify)(traj), 1.0)
    right, result = jax.jit(TASK.step_correct)(traj)
    np.testing.assert_array_equal(right, result)
    np.testing.assert_array_equal(result.sum(axis=1), prompts.info["steps"])


def test_surface_forms_are_equally_likely():
    prompts = TASK.prompts(jax.random.key(0), 8000, steps=jnp.ones(8000, jnp.int32))
    tokens, _ = TASK.demonstrations(jax.random.key(1), prompts)
    second = [TASK.vocabulary[token] for token in np.asarray(tokens[:, 1])]
    # none, so, then, thus: 1/4 each, with a standard error of 0.005
    for word in ("#", "so", "then", "thus"):
        assert second.count(word) / 8000 == pytest.approx(0.25, abs=0.02)
    plain, _ = TASK.demonstrations(jax.random.key(1), prompts, paraphrase=False)
    assert int(plain.max()) < TASK.first_connective


def test_a_slip_carries_on_into_later_steps():
    task = Arithmetic(min_steps=3, operations="+-")  # nothing multiplies a slip away
    prompts = task.prompts(jax.random.key(0), 6000)
    tokens, valid = task.demonstrations(jax.random.key(1), prompts, error_rate=0.2)
    words = [
        [w for w in task.decode(row).split() if w.isdigit()] for row in np.asarray(tokens[:300])
    ]
    operands, operators = (np.asarray(prompts.info[name]) for name in ("operands", "operators"))
    slips = 0
    for row, numbers in enumerate(words):
        value = operands[row, 0]
        for step in range(3):
            sign = 1 if operators[row, step] == 0 else -1
            slips += int(numbers[step]) != (value + sign * operands[row, step + 1]) % 10
            value = int(numbers[step])  # the next step reads what was written
        assert numbers[3] == numbers[2]
    assert slips / 900 == pytest.approx(0.2, abs=0.05)
    right, result = task.step_correct(join(prompts, tokens, valid))
    # the first step is right with 0.8, and so are all with 0.8 ** 3 (sd of the mean below 0.007)
    first = result & (jnp.cumsum(result, axis=1) == 1)
    assert float((right & first).sum() / 6000) == pytest.approx(0.8, abs=0.03)
    clean = (right == result).all(axis=1)
    assert float(clean.mean()) == pytest.approx(0.512, abs=0.03)
    solved = task.verify(join(prompts, tokens, valid))
    # slips cancel now and then; a clean derivation always verifies
    assert bool((solved[clean] == 1).all())
    assert float(solved[~clean].mean()) < 0.1
    every, kept = task.demonstrations(jax.random.key(1), prompts, error_rate=1.0)
    right, _ = task.step_correct(join(prompts, every, kept))
    assert not bool((right & first).any())


VERIFIED = {
    "7 # 7 <eos>": 1.0,
    "# 7 <eos>": 1.0,
    "1 ; so so # 7 <eos>": 1.0,
    "7 # 6 <eos>": 0.0,
    "7 # 7": 0.0,  # cut off before eos
    "7 # 7 7 <eos>": 0.0,
    "7 # 7 so <eos>": 0.0,
    "7 # so 7 <eos>": 0.0,
    "7 # 7 <eos> so": 0.0,
    "7 # 7 # 7 <eos>": 0.0,
    "# # 7 <eos>": 0.0,
    "# so # so 7 <eos>": 0.0,
    "7 <eos>": 0.0,
    "7 #": 0.0,
    "": 0.0,
}


@pytest.mark.parametrize("left", [False, True])
def test_verify_is_strict(left):
    tokens, mask = rows(list(VERIFIED), 10, left=left)
    traj = trajectory(tokens, mask, {"answer": jnp.full(len(VERIFIED), 7)})
    np.testing.assert_array_equal(TASK.verify(traj), list(VERIFIED.values()))
    answers = TASK.written_answer(traj).tolist()
    assert answers == [7, 7, 7, 6] + [-1] * (len(VERIFIED) - 4)


def test_zero_is_an_answer_like_others():
    tokens, mask = rows(["# 0 <eos>", "0"], 4)
    traj = trajectory(tokens, mask, {"answer": jnp.zeros(2, jnp.int32)})
    assert TASK.verify(traj).tolist() == [1.0, 0.0]


def test_only_acted_tokens_count():
    # what stands off the mask, before, between and behind, is neither delimiter nor answer
    tokens = jnp.asarray([ids("# 5 7 # # 7 so <eos> # 3")])
    mask = jnp.asarray([[False, False, True, False, True, True, False, True, False, False]])
    traj = trajectory(tokens, mask, {"answer": jnp.asarray([7])})
    assert TASK.verify(traj).tolist() == [1.0]
    assert TASK.verify(traj.replace(mask=jnp.ones_like(mask))).tolist() == [0.0]


def test_step_correct_by_hand():
    responses = ["3 so ; 9 ; 4 # 4 <eos>", "3 ; 8 ; 4 4 # 4 <eos>", "9 # 3 <eos>", "so 3"]
    traj = written(responses, [[3, 9, 4], [3, 9, 4], [3], [3, 9]])
    right, result = TASK.step_correct(traj)
    at = lambda flags: [np.flatnonzero(row).tolist() for row in np.asarray(flags)]  # noqa: E731
    assert at(result) == [[0, 3, 5], [0, 2, 4, 5], [0], [1]]
    assert at(right) == [[0, 3, 5], [0, 4], [], [1]]  # a fourth number has no step to be right on


def test_numbers_beyond_the_steps_are_wrong():
    right, result = TASK.step_correct(written(["3 3 3 3 # 3 <eos>"], [[3]]))
    assert np.flatnonzero(result[0]).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(right[0]).tolist() == [0]


def test_reference_answer_completes_a_response():
    prompts = TASK.prompts(jax.random.key(3), 16)
    tokens, valid = jax.jit(TASK.reference_answer)(prompts.info)
    assert tokens.shape == (16, 2)
    assert bool(valid.all())
    start = jnp.full((16, 1), TASK.delimiter)
    traj = join(prompts, jnp.concatenate([start, tokens], 1), jnp.ones((16, 3), bool))
    np.testing.assert_array_equal(TASK.verify(traj), 1.0)


@pytest.mark.parametrize("length", [18, 30])
def test_reference_derivation_is_true_and_long(length):
    prompts = TASK.prompts(jax.random.key(0), N)
    derive = jax.jit(TASK.reference_derivation, static_argnums=2)
    tokens, valid = derive(jax.random.key(1), prompts, length)
    assert tokens.shape == (N, length)
    assert bool(valid.all())
    questions, info, tokens = jax.device_get((prompts.tokens, prompts.info, tokens))
    for row in range(N):
        steps = info["steps"][row]
        words = TASK.decode(tokens[row]).split()
        assert words[-1] == "<eos>"
        bare = [word for word in words[:-1] if word not in TASK.connectives]
        lines = " ".join(bare).split(" ; ")
        expression = TASK.decode(questions[row]).split()[1:-1]
        value = expression[0]
        for step, line in enumerate(lines):
            left, symbol, right, equals, result = line.split()
            assert [left, symbol, right, equals] == [value, *expression[2 * step + 1 :][:2], "="]
            assert int(result) == info["partials"][row, step]
            value = result
        assert len(lines) == steps


def test_reference_derivation_has_many_equally_likely_forms():
    # one step of 6 tokens in 7 places: one connective in any of 6 places, one of 3 words
    task = Arithmetic(max_steps=1)
    prompts = task.prompts(jax.random.key(0), 1)
    prompts = jax.tree.map(lambda x: jnp.repeat(x, 9000, axis=0), prompts)
    tokens, _ = task.reference_derivation(jax.random.key(1), prompts, 7)
    forms, counts = np.unique(np.asarray(tokens), axis=0, return_counts=True)
    assert len(forms) == 18
    assert np.abs(counts / 9000 - 1 / 18).max() < 0.012  # standard error 0.0024


def test_equal_keys_equal_draws():
    one, two, other = (TASK.prompts(jax.random.key(seed), 50).tokens for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modulus": 1}, "modulus: expected 2 to 46341, found 1"),
        ({"modulus": 46342}, "modulus: expected 2 to 46341, found 46342"),
        ({"min_steps": 0}, "min_steps: expected at least 1, found 0"),
        ({"min_steps": 4}, "min_steps: expected at most max_steps = 3, found 4"),
        ({"operations": "+/"}, "operations: expected some of .*, found '/'"),
        ({"operations": "++"}, "operations: expected one or more, each once"),
        ({"operations": ""}, "operations: expected one or more"),
        ({"connectives": ()}, "connectives: expected at least one word"),
        ({"connectives": ("so", "3")}, "connectives: expected words that differ"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Arithmetic(**fields)


def test_bad_arguments_are_named():
    prompts = TASK.prompts(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"length: expected at least 18 .*, found 17"):
        TASK.reference_derivation(jax.random.key(0), prompts, 17)
    with pytest.raises(ValueError, match=f"ids: expected 0 to {TASK.vocab_size - 1}, found 99"):
        TASK.decode([1, 99])
    assert isinstance(prompts, Prompts)
