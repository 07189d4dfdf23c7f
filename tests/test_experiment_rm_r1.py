"""RM-R1: how a judge is rewarded and examined, and every arm for a few steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.judges.rm_r1 import EXPERIMENT, judge
from rewardjax.recipes.judging import BARE
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.tasks.pair_judgement import TOKEN
from rewardjax.training.run import Run
from rewardjax.trajectory import respond

SMOKE = EXPERIMENT.scales["smoke"]


def oracle(prompts, flip):
    """Bare verdicts: the label, turned round where `flip` is on."""
    tags = TOKEN["[[A]]"] + (prompts.info["label"] ^ flip)
    return jnp.stack([tags, jnp.full_like(tags, SMOKE.world.eos)], axis=1)


def test_a_judge_is_rewarded_for_the_verdict_alone():
    judged = judge(SMOKE, think=False)
    prompts = judged.prompts(jax.random.key(0), 4)
    tokens = oracle(prompts, jnp.array([0, 1, 0, 0]))
    tokens = tokens.at[2, 0].set(TOKEN["hit"])  # no verdict
    valid = jnp.ones_like(tokens, bool).at[3].set(False)  # nothing written
    reward = judged.reward(respond(prompts, tokens, valid))
    assert reward.outcome.tolist() == [1.0, -1.0, -1.0, 0.0]
    assert reward.applicable.tolist() == [True, True, True, False]
    assert reward.steps[0].tolist()[-BARE:] == [0.0, 1.0]


@dataclasses.dataclass(frozen=True)
class Scripted(LanguagePolicy):
    """A policy that gives the longer answer's tag, or always A's."""

    always: bool = False

    def rollout(self, params, prompts, key):
        lengths = jnp.sum(prompts.info["answers"] != SMOKE.world.pad, axis=2)
        longer = jnp.where(self.always, 0, jnp.argmax(lengths, axis=1))
        tokens = oracle(prompts, longer ^ prompts.info["label"])
        return respond(prompts, tokens, jnp.ones_like(tokens, bool))


@pytest.mark.parametrize(("always", "expected"), [(False, (0.85, 0.15, 1)), (True, (0.5, 0.5, 0))])
def test_an_examination_tells_judges_apart(always, expected):
    judged = judge(SMOKE, think=False)
    scripted = Scripted(judged.policy.model, BARE, (), always=always)
    judged = dataclasses.replace(judged, policy=scripted, pairs=600)
    found = jax.jit(judged.examine)(None, None, jax.random.key(0))
    np.testing.assert_allclose([found["easy"], found["hard"]], expected[:2], atol=0.05)
    assert found["consistency"] == expected[2]
    assert found["parsed"] == 1


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize("arm", EXPERIMENT.arms)
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    claimed = {claim.metric for claim in EXPERIMENT.claims if arm in (claim.arm, claim.baseline)}
    assert claimed <= set(metrics)
    if arm != "scalar_bt":
        (samples,) = tmp_path.glob("*/samples.jsonl")
        assert samples.read_text().count("\n") == 8


def test_data_that_are_not_generated_are_refused():
    with pytest.raises(ValueError, match="expected 'pair_judgement'"):
        EXPERIMENT.prepare(EXPERIMENT.scales["paper"])
