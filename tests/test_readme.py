"""What README promises."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from rewardjax import catalogue

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_is_an_experiment(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    file = tmp_path / "experiments" / "preferences" / "capped.py"
    file.parent.mkdir(parents=True)
    file.write_text(code)
    entry, experiment = catalogue.load(str(file))
    assert entry.slug == "capped"
    shape = experiment.arms["capped"].build.keywords["shape"]
    refs = jnp.array([[0.5, 1.0], [2.0, 0.0]])
    np.testing.assert_array_equal(shape(jnp.array([3.0, 1.5]), refs, {}), [1.0, 1.5])
    assert callable(experiment.arms["capped"].build(experiment.scales["mini"]))


def test_the_files_that_it_names_are_there():
    named = re.findall(r"`((?:docs|third_party|experiments|results)/[\w./]*)`", README)
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert len(named) > 5
    for name in [*named, *pictures]:
        assert (ROOT / name).exists() or name.endswith("capped.py"), name
