"""P3O: its arms for a few steps, and that offsets of the prompts' rewards change no update of it."""

import dataclasses

import numpy as np
import pytest

from experiments.preferences.p3o import EXPERIMENT
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def test_every_prompt_has_its_own_offset(shared):
    info = shared[1].info
    code = info["theme"] @ np.array([5, 1])
    offsets = {int(c): {float(x) for x in info["offset"][code == c]} for c in set(code.tolist())}
    assert all(len(found) == 1 for found in offsets.values())
    assert len({x for found in offsets.values() for x in found}) == len(offsets) > 10


def test_offsets_change_nothing(shared, tmp_path):
    frozen, prompts, pairs = shared
    run_seed, found = EXPERIMENT.arms["p3o_v2_s5"].build(SMOKE), []
    for scale in (0.0, 1.0):
        offset = scale * prompts.info["offset"]
        moved = dataclasses.replace(prompts, info=prompts.info | {"offset": offset})
        with Run(tmp_path / str(scale), 0, "p3o_v2") as run:
            run_seed(run, (frozen, moved, pairs))
            stage = run.stage("rl")
            found.append([stage.history(name) for name in ("loss", "gold", "kl", "reward")])
        assert (stage.folder / "samples.jsonl").read_text().count("\n") == 8
    without, shifted = np.array(found)
    np.testing.assert_allclose(without[:3], shifted[:3], atol=1e-4)
    assert np.abs(without[3] - shifted[3]).min() > 0.1


@pytest.mark.parametrize("arm", ["ppo_s5", "dpo"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    assert {claim.metric for claim in EXPERIMENT.claims} <= set(metrics)


def test_data_that_cannot_be_generated_are_refused():
    with pytest.raises(ValueError, match=r"data: expected 'world'.*'Anthropic/hh-rlhf'"):
        EXPERIMENT.prepare(EXPERIMENT.scales["paper"])
