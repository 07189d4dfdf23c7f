import collections
import gzip
import json
import subprocess
import sys

import pytest

from rewardjax.data import formats
from rewardjax.data.formats import open_preferences
from rewardjax.data.jsonl import load
from rewardjax.data.records import BadRecord, Preference, Prompt, Solution
from rewardjax.data.tfds import prepare_preferences, read_preferences

DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: More\n\nAssistant:"


def write(path, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_hh_splits_at_the_last_turn():
    record = formats.hh_preference({"chosen": DIALOGUE + " yes", "rejected": DIALOGUE + " no"})
    assert record == Preference(DIALOGUE, (" yes", " no"), 1.0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "field", "words"),
    [
        (DIALOGUE + " yes", DIALOGUE.replace("Hi", "Ho") + " no", "rejected", "from character 10"),
        (DIALOGUE + " yes", DIALOGUE + " \n", "rejected", "a response after the last turn"),
        (DIALOGUE, DIALOGUE + " no", "chosen", "a response after the last turn"),
        ("yes", "no", "chosen", "a dialogue with a turn"),
        (DIALOGUE + " yes", None, "rejected", "expected text, found None"),
    ],
)
def test_hh_refuses(chosen, rejected, field, words):
    with pytest.raises(BadRecord, match=words) as error:
        formats.hh_preference({"chosen": chosen, "rejected": rejected})
    assert error.value.field == field


@pytest.mark.parametrize(
    ("final", "answer"),
    [("72", "72"), ("1,234,567", "1234567"), ("-5 ", "-5"), ("0.5", "0.5")],
)
def test_gsm8k_takes_the_number_after_the_last_mark(final, answer):
    row = {"question": "q", "answer": f"a #### 3\nb\n#### {final}"}
    assert formats.gsm8k(row) == Prompt("q", answer)


@pytest.mark.parametrize("worked", ["72", "#### ", "#### many", "#### 7 2", "#### $7"])
def test_gsm8k_refuses_an_answer_without_a_number(worked):
    with pytest.raises(BadRecord, match="answer: expected a number after '#### '"):
        formats.gsm8k({"question": "q", "answer": worked})


def test_gsm8k_solutions_makes_one_record_a_model():
    judged = {name: {"solution": name[:2], "is_correct": False} for name in formats.GSM8K_MODELS}
    judged["175b_finetuning"]["is_correct"] = True
    records = formats.gsm8k_solutions({"question": "q", **judged})
    assert records[0] == Solution("q", "6b", False, "6b_finetuning")
    assert [record.correct for record in records] == [False, False, True, False]
    with pytest.raises(BadRecord, match=r"175b_verification\.is_correct"):
        formats.gsm8k_solutions({"question": "q", **judged, "175b_verification": {"solution": "s"}})


def test_own_layout_refuses_a_misspelt_field():
    row = {"prompt": "q", "responses": ["a", "b"], "probability": 0.5}
    assert formats.preference(row) == Preference("q", ("a", "b"), 0.5)
    with pytest.raises(BadRecord, match="near: probability"):
        formats.preference({"prompt": "q", "responses": ["a", "b"], "probabilty": 0.5})
    with pytest.raises(BadRecord, match=r"responses: .*found fields prompt"):
        formats.preference({"prompt": "q"})


def test_jsonl_files_by_name(tmp_path):
    rows = [{"prompt": str(i), "responses": ["a", "b"]} for i in range(3)]
    write(tmp_path / "all.jsonl", *rows)
    write(tmp_path / "test.jsonl.gz", rows[1])
    assert len(open_preferences(f"jsonl:{tmp_path}/all.jsonl", "train").records) == 3
    held_out = open_preferences(f"jsonl:{tmp_path}/{{split}}.jsonl.gz", "test").records
    assert held_out == [Preference("1", ("a", "b"), source="test.jsonl.gz:1")]
    with pytest.raises(ValueError, match="one file holds the split 'train' only, found 'test'"):
        open_preferences(f"jsonl:{tmp_path}/all.jsonl", "test")
    with pytest.raises(FileNotFoundError):
        open_preferences(f"jsonl:{tmp_path}/none.jsonl", "train")


@pytest.mark.parametrize("spec", ["csv:x", "hh", "hh:", "tfds:name", ""])
def test_an_unknown_scheme_names_the_known_ones(spec):
    with pytest.raises(ValueError, match="hh:DIR, alpaca:DIR, jsonl:FILE or tfds:NAME@DATA_DIR"):
        open_preferences(spec, "train")


@pytest.mark.parametrize("scheme", ["hh", "alpaca"])
def test_an_unknown_split_is_refused(tmp_path, scheme):
    with pytest.raises(ValueError, match="expected the split 'train' or 'test', found 'dev'"):
        open_preferences(f"{scheme}:{tmp_path}", "dev")


def test_hh_folder_without_its_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected dev\.jsonl\.gz or test\.jsonl\.gz"):
        open_preferences(f"hh:{tmp_path}", "test")
    row = {"chosen": DIALOGUE + " yes", "rejected": DIALOGUE + " no"}
    write(tmp_path / "test.jsonl.gz", row)
    assert len(open_preferences(f"hh:{tmp_path}", "test").records) == 1


def test_real_hh(real_data):
    spec = f"hh:{real_data / 'hh_harmless'}"
    with pytest.raises(BadRecord, match=r"train\.jsonl\.gz:398: chosen: expected a response"):
        open_preferences(spec, "train", on_bad="raise")
    train = open_preferences(spec, "train")
    # 3 empty chosen responses and 3 pairs of different prompts among 1,500 rows; 1 of these in 300.
    assert len(train.records) == 1494
    assert sorted(train.skipped.values()) == [3, 3]
    test = open_preferences(spec, "test", on_bad="skip")
    assert (len(test.records), sum(test.skipped.values())) == (299, 1)
    with gzip.open(real_data / "hh_harmless" / "train.jsonl.gz", "rt") as stream:
        first = json.loads(next(stream))
    record = train.records[0]
    assert record.prompt + record.responses[0] == first["chosen"]
    assert record.prompt + record.responses[1] == first["rejected"]
    assert record.source == "train.jsonl.gz:1"


def test_real_alpaca(real_data):
    spec = f"alpaca:{real_data / 'alpaca_eval'}"
    train = open_preferences(spec, "train", on_bad="skip")
    test = open_preferences(spec, "test", on_bad="skip")
    assert not {r.prompt for r in train.records} & {r.prompt for r in test.records}
    assert len(train.records) + len(test.records) == 7219  # 7,241 rows, 22 with an empty response
    assert 0.15 < len(test.records) / 7219 < 0.25
    assert len({record.annotator for record in train.records}) == 9
    first = train.records[0]
    assert first.annotator == "alpaca-7b"
    assert first.probability == 0.0


def test_real_gsm8k(real_data):
    prompts = load(real_data / "gsm8k" / "train.jsonl.gz", formats.gsm8k).records
    assert len(prompts) == 7473
    assert prompts[0].answer == "72"
    assert all(float(prompt.answer) == float(prompt.answer) for prompt in prompts)
    path = real_data / "gsm8k" / "model_solutions.jsonl.gz"
    solutions = load(path, formats.gsm8k_solutions).records
    counts = collections.Counter(solution.model for solution in solutions)
    assert counts == dict.fromkeys(formats.GSM8K_MODELS, 900)
    assert 0 < sum(solution.correct for solution in solutions) < 3600


RECORDS = [
    Preference("p é 0", ("a", "b"), 0.25, source="x:0"),
    Preference("p 1", ("a", " b\n"), 0.0, annotator="ann", source="x:1"),
    Preference(
        "p 2",
        ("a", "b", "c"),
        1.0,
        (2, 0, 1),
        {"helpful": (1.0, 0.5, -2.0), "short": (0.0, 0.0, 1.0)},
        source="x:2",
    ),
]


def test_tfds_round_trip(tmp_path):
    folder = prepare_preferences({"train": RECORDS, "test": RECORDS[:1]}, "my_pairs", tmp_path)
    assert folder == tmp_path / "my_pairs" / "1.0.0"
    assert list(folder.glob("*.array_record*"))
    loaded = open_preferences(f"tfds:my_pairs@{tmp_path}", "train")
    assert sorted(loaded.records, key=lambda record: record.source) == RECORDS
    assert read_preferences("my_pairs:1.0.0", tmp_path, "test").records == RECORDS[:1]
    assert len(read_preferences("my_pairs", tmp_path, "all").records) == 4
    assert len(read_preferences("my_pairs", tmp_path, "train[:2]").records) == 2
    with pytest.raises(FileExistsError, match=r"my_pairs.1\.0\.0"):
        prepare_preferences({"train": RECORDS}, "my_pairs", tmp_path)
    with pytest.raises(ValueError, match="expected a split of train, test, found 'dev'"):
        read_preferences("my_pairs", tmp_path, "dev")
    with pytest.raises(FileNotFoundError, match="tfds:other@"):
        open_preferences(f"tfds:other@{tmp_path}", "train")


def test_tfds_refuses_malformed_names_and_empty_splits(tmp_path):
    with pytest.raises(ValueError, match="name: expected lower-case"):
        prepare_preferences({"train": RECORDS}, "my pairs", tmp_path)
    with pytest.raises(ValueError, match="found none in test"):
        prepare_preferences({"train": RECORDS, "test": []}, "pairs", tmp_path)
    with pytest.raises(ValueError, match="found no splits"):
        prepare_preferences({}, "pairs", tmp_path)


OTHER_LAYOUT = """
import sys
import tensorflow_datasets as tfds
text = tfds.features.Text()

class Dialogues(tfds.core.GeneratorBasedBuilder):
    name = "dialogues"
    VERSION = tfds.core.Version("2.0.0")

    def _info(self):
        columns = tfds.features.FeaturesDict({"chosen": text, "rejected": text})
        return tfds.core.DatasetInfo(builder=self, features=columns)

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        turn = "\\n\\nHuman: Hi\\n\\nAssistant:"
        yield 0, {"chosen": turn + " yes", "rejected": turn + " no"}
        yield 1, {"chosen": turn, "rejected": turn + " no"}

Dialogues(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
from rewardjax.data.formats import open_preferences
loaded = open_preferences(f"tfds:dialogues@{sys.argv[1]}", "train", "skip")
assert [r.responses for r in loaded.records] == [(" yes", " no")], loaded
assert loaded.records[0].source.startswith("dialogues/train:"), loaded
assert list(loaded.skipped.values()) == [1], loaded
assert "tensorflow" not in sys.modules
"""

# Without the run-time type checker of the tests, which stops such values before the library can.
UNKNOWN_CHOICES = """
from rewardjax.data.batching import encode_pair
from rewardjax.data.formats import gsm8k
from rewardjax.data.jsonl import load
from rewardjax.data.tokenizers import CharTokenizer

def message(call, *args):
    try:
        return str(call(*args))
    except ValueError as error:
        return str(error)

wrong = message(load, "none.jsonl", gsm8k, "ignore")
assert wrong == "on_bad: expected 'raise' or 'skip', found 'ignore'", wrong
wrong = message(encode_pair, "a", "b", CharTokenizer("ab"), 9, "cut")
assert wrong == "on_long: expected 'error' or 'truncate_left', found 'cut'", wrong
"""


@pytest.mark.parametrize("script", [OTHER_LAYOUT, UNKNOWN_CHOICES], ids=["tfds", "choices"])
def test_in_a_process_of_its_own(tmp_path, script):
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
