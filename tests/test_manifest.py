"""Every data set that a paper scale names is in third_party/manifest.yaml, with its licence."""

import pytest
import yaml

from rewardjax import catalogue

ENTRIES = yaml.safe_load(
    (catalogue.experiments_folder().parent / "third_party" / "manifest.yaml").read_text()
)
KEYS = ["name", "kind", "source", "licence", "gated", "obtain"]
PAPER = [
    pytest.param(part, id=f"{entry.slug}: {part}")
    for entry, found in catalogue.load_all(catalogue.experiments_folder())
    for part in getattr(found.scales["paper"], "data", "").split(", ")
    if part
]


def test_entries_are_complete():
    assert all(list(entry) == KEYS and all(map(str, entry.values())) for entry in ENTRIES)
    assert {entry["kind"] for entry in ENTRIES} == {"checkpoint", "dataset", "environment"}
    assert len({entry["name"] for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize("part", PAPER)
def test_what_a_paper_scale_names_is_listed(part):
    assert part in {entry["name"] for entry in ENTRIES}
