import gzip
import json
import pickle

import pytest

from rewardjax.data.jsonl import fields, load, lookup, read_jsonl
from rewardjax.data.records import BadRecord, Demonstration, Preference, Prompt, Solution


def write(path, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_a_preference_normalises_what_json_gives():
    record = Preference(
        "q", ["a", "b", "c"], 1, ranking=[2, 0, 1], attributes={"helpful": [1, 2, 0.5]}
    )
    assert record.responses == ("a", "b", "c")
    assert record.ranking == (2, 0, 1)
    assert record.attributes == {"helpful": (1.0, 2.0, 0.5)}
    assert type(record.probability) is float
    assert record == Preference("q", ("a", "b", "c"), 1.0, (2, 0, 1), {"helpful": (1.0, 2.0, 0.5)})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": 3}, "prompt"),
        ({"responses": ("a",)}, "responses"),
        ({"responses": "ab"}, "responses"),
        ({"responses": ("a", " \n")}, "responses[1]"),
        ({"responses": (None, "b")}, "responses[0]"),
        ({"probability": 1.01}, "probability"),
        ({"probability": -0.01}, "probability"),
        ({"probability": float("nan")}, "probability"),
        ({"probability": "1"}, "probability"),
        ({"probability": True}, "probability"),
        ({"ranking": (0, 0)}, "ranking"),
        ({"ranking": (1, 2)}, "ranking"),
        ({"ranking": (1.0, 0.0)}, "ranking"),
        ({"ranking": 1}, "ranking"),
        ({"attributes": {"h": (1.0,)}}, "attributes.h"),
        ({"attributes": {"h": (1.0, float("inf"))}}, "attributes.h"),
        ({"attributes": [1.0, 2.0]}, "attributes"),
        ({"annotator": 7}, "annotator"),
    ],
)
def test_a_preference_refuses(changes, field):
    good = {"prompt": "q", "responses": ("a", "b")}
    assert Preference(**good).probability == 1.0
    with pytest.raises(BadRecord) as error:
        Preference(**{**good, **changes})
    assert error.value.field == field


def test_the_other_records_refuse():
    assert Prompt("q", "4").answer == "4"
    with pytest.raises(BadRecord, match=r"answer: expected text, found 4"):
        Prompt("q", 4)
    with pytest.raises(BadRecord, match="response: expected a text that is not empty"):
        Demonstration("q", "")
    with pytest.raises(BadRecord, match="correct: expected true or false, found 1"):
        Solution("q", "s", 1, "m")


def test_a_bad_record_says_where_and_survives_pickling():
    error = BadRecord("answer", "a number", "'x'").at("train.jsonl", 7)
    assert str(error) == "train.jsonl:7: answer: expected a number, found 'x'"
    assert error.reason == "answer: expected a number"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(BadRecord("answer", "a number", "'x'")) == "answer: expected a number, found 'x'"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_read_jsonl_counts_lines_from_one_and_passes_blank_ones_over(tmp_path, name):
    path = write(tmp_path / name, {"a": 1}, "  ", {"a": "é"})
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (3, {"a": "é"})]


@pytest.mark.parametrize("line", ['{"a": ', "[1]", "nonsense"])
def test_read_jsonl_names_file_and_line_of_a_broken_row(tmp_path, line):
    path = write(tmp_path / "rows.jsonl", {"a": 1}, line)
    with pytest.raises(BadRecord) as error:
        list(read_jsonl(path))
    assert (error.value.file, error.value.line, error.value.field) == (str(path), 2, "line")


def test_text_that_is_not_utf8_is_a_bad_record(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(BadRecord, match=r"rows\.jsonl:1: line: expected a line of JSON in UTF-8"):
        list(read_jsonl(path))


def test_a_truncated_gzip_file_is_never_skipped(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "q"}\n' * 100)[:-12])
    with pytest.raises(BadRecord, match="a whole gzip stream"):
        load(path, fields(Prompt, {"prompt": "prompt"}), on_bad="skip")


def test_load_raises_or_skips_and_counts(tmp_path):
    row = {"q": "2+2", "a": "4"}
    path = write(
        tmp_path / "rows.jsonl", row, {"q": "3"}, "{", {"q": "3", "a": ""}, {"q": "4"}, row
    )
    parse = fields(Demonstration, {"prompt": "q", "response": "a"})
    with pytest.raises(BadRecord) as error:
        load(path, parse)
    assert (error.value.line, error.value.field) == (2, "a")
    loaded = load(path, parse, on_bad="skip")
    assert loaded.records == [
        Demonstration("2+2", "4", "rows.jsonl:1"),
        Demonstration("2+2", "4", "rows.jsonl:6"),
    ]
    assert loaded.skipped == {
        "a: expected a field of this name": 2,
        "line: expected a line of JSON in UTF-8": 1,
        "response: expected a text that is not empty": 1,
    }


def test_load_flattens_lists_and_keeps_a_source_that_is_there(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"n": 2}, {"n": 0}, {"n": 1})
    loaded = load(path, lambda row: [Prompt("q", source="mine"), Prompt("q")][: row["n"]])
    assert [record.source for record in loaded.records] == ["mine", "rows.jsonl:1", "mine"]


def test_lookup_follows_dots_into_objects_and_lists():
    row = {"a": {"b": [{"c": 5}]}, "x.y": 6}
    assert lookup(row, "a.b.0.c") == 5
    assert lookup(row, "x.y") == 6
    with pytest.raises(BadRecord, match="found a list of 1"):
        lookup(row, "a.b.1.c")
    with pytest.raises(BadRecord, match="found 6"):
        lookup({"x": 6}, "x.y")


def test_a_missing_field_names_file_line_field_and_near_matches(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"judge": {"instructions": "q", "score": 1}})
    with pytest.raises(BadRecord) as error:
        load(path, fields(Prompt, {"prompt": "judge.instruction"}))
    assert str(error.value) == (
        f"{path}:1: judge.instruction: expected a field of this name,"
        " found fields instructions, score (near: instructions)"
    )


def test_fields_gathers_several_names_into_one_field():
    parse = fields(
        Preference,
        {"prompt": "q", "responses": ("ours.text", "theirs.text"), "probability": "p"},
    )
    row = {"q": "?", "ours": {"text": "a"}, "theirs": {"text": "b"}, "p": 0.25}
    assert parse(row) == Preference("?", ("a", "b"), 0.25)


def test_fields_refuses_a_mapping_that_cannot_work():
    with pytest.raises(ValueError, match=r"Prompt has no field 'prompts': .*near: prompt"):
        fields(Prompt, {"prompts": "q"})
    with pytest.raises(ValueError, match="the mapping for Preference leaves out responses"):
        fields(Preference, {"prompt": "q"})
