"""Published record layouts, and preference data opened by a short name.

Each parser makes a record of one row; `rewardjax.data.jsonl.load` applies it to a file.
"""

import re
import zlib
from pathlib import Path

from rewardjax.data.jsonl import (
    Loaded,
    OnBad,
    Row,
    check_known,
    fields,
    load,
    lookup,
)
from rewardjax.data.records import BadRecord, Demonstration, Preference, Prompt, Solution, shown

HH_TURN = "\n\nAssistant:"
GSM8K_MARK = "#### "
GSM8K_SOLUTION_MARK = "A: "  # before the answer in the models' solutions
GSM8K_MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
TEST_SHARE = 5  # one instruction in five is held out where a data set has no split of its own

_SCHEMES = ("hh", "alpaca", "jsonl", "tfds")  # of preference data
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_PREFERENCE_FIELDS = (
    "prompt",
    "responses",
    "probability",
    "ranking",
    "attributes",
    "annotator",
    "source",
)


def hh_preference(row: Row) -> Preference:
    """Anthropic's helpful and harmless dialogues: `chosen` and `rejected` (arXiv:2204.05862).

    The two dialogues agree up to their last "\\n\\nAssistant:" turn. That prefix, turn marker included,
    is the prompt and the rest of each dialogue is its response, so prompt + response is the dialogue.

    Raises:
      BadRecord: a dialogue without an assistant's turn, prompts that differ, an empty response.
    """
    prompt, chosen = _last_turn(row, "chosen")
    other, rejected = _last_turn(row, "rejected")
    if prompt != other:
        raise BadRecord(
            "rejected",
            "the prompt of chosen, up to the last '\\n\\nAssistant:'",
            f"a difference from character {_first_difference(prompt, other)} on",
        )
    return Preference(prompt, (chosen, rejected))


def gsm8k(row: Row) -> Prompt:
    """GSM8K: `question`, and a worked `answer` that ends in "#### 1,234" (arXiv:2110.14168).

    Returns:
      The question, with the final number (thousands' commas removed) as its answer.

    Raises:
      BadRecord: there is no number after the last "#### ".
    """
    worked = _text(row, "answer")
    _, mark, final = worked.rpartition(GSM8K_MARK)
    number = final.strip().replace(",", "")
    if not mark or not _NUMBER.fullmatch(number):
        raise BadRecord("answer", f"a number after {GSM8K_MARK!r}", shown(worked[-60:]))
    return Prompt(_text(row, "question"), number)


def gsm8k_demonstration(row: Row) -> Demonstration:
    """GSM8K as demonstrations in the form of the models' solutions: the last line is "A: 1,234".

    Raises:
      BadRecord: as for `gsm8k`.
    """
    question = gsm8k(row).prompt
    steps, _, final = row["answer"].rpartition(GSM8K_MARK)
    return Demonstration(question, steps + GSM8K_SOLUTION_MARK + final.strip())


def gsm8k_solutions(row: Row) -> list[Solution]:
    """GSM8K's model solutions: one question with the judged solution of each of four models.

    Returns:
      One `Solution` a model, in the order of `GSM8K_MODELS`.

    Raises:
      BadRecord: a model is missing, a solution is empty, or `is_correct` is not true or false.
    """
    question = _text(row, "question")
    return [
        Solution(
            question,
            lookup(row, f"{model}.solution"),
            lookup(row, f"{model}.is_correct"),
            model,
        )
        for model in GSM8K_MODELS
    ]


# The judge is the same in all rows; what distinguishes them is the generator of response 0.
alpaca_judgement = fields(
    Preference,
    {
        "prompt": "instruction",
        "responses": ("response", "reference"),
        "probability": "p_response_preferred",
        "annotator": "generator",
    },
)
"""AlpacaEval's judgements: a model's answer against the reference, with the judge's soft label."""


def preference(row: Row) -> Preference:
    """This library's own layout: the fields of `Preference`, of which `prompt` and `responses` must be there.

    Raises:
      BadRecord: a field is missing, unknown (so that a misspelt label is not lost), or of the wrong form.
    """
    check_known(row, _PREFERENCE_FIELDS)
    required = {name: lookup(row, name) for name in ("prompt", "responses")}
    return Preference(**{**row, **required})


def names_preferences(spec: str) -> bool:
    """Whether `open_preferences` knows the scheme of `spec`."""
    scheme, colon, _ = spec.partition(":")
    return bool(colon) and scheme in _SCHEMES


def open_preferences(spec: str, split: str, on_bad: OnBad | None = None) -> Loaded[Preference]:
    """Opens preference data by a short name.

    Args:
      spec: one of
        `hh:DIR`: `DIR/train.jsonl.gz`, and `DIR/dev.jsonl.gz` or `DIR/test.jsonl.gz` for "test";
        `alpaca:DIR`: `DIR/judgements.jsonl.gz`; an instruction's checksum decides its split, so that all
          answers to one instruction are on the same side (about one in five in "test");
        `jsonl:FILE`: the layout of `preference`. `{split}` in FILE stands for the split; a FILE without
          it is all "train";
        `tfds:NAME@DATA_DIR`: a data set that TFDS prepared as ArrayRecord.
      split: "train" or "test" ("tfds:" and "{split}" take any that is there).
      on_bad: as for `load`; None skips the bad rows of hh, which was published with a few (empty
        responses, dialogues that part before their last turn), and raises for all others.

    Raises:
      ValueError: an unknown scheme or split.
      BadRecord: a bad row that is not skipped.
      FileNotFoundError: there is no such file.
    """
    scheme, _, place = spec.partition(":")
    if on_bad is None:
        on_bad = "skip" if scheme == "hh" else "raise"
    if scheme == "hh" and place:
        return load(_hh_file(Path(place), split), hh_preference, on_bad)
    if scheme == "alpaca" and place:
        _check_split(spec, split)
        return load(Path(place) / "judgements.jsonl.gz", _alpaca_split(split), on_bad)
    if scheme == "jsonl" and place:
        if "{split}" not in place and split != "train":
            raise ValueError(
                f"{spec}: one file holds the split 'train' only, found {split!r};"
                " put {split} in the file's name to have one file a split"
            )
        return load(place.replace("{split}", split), preference, on_bad)
    if scheme == "tfds" and "@" in place:
        # Imported here: it takes a second that no other scheme has to wait for.
        from rewardjax.data.tfds import read_preferences

        name, _, data_dir = place.partition("@")
        return read_preferences(name, data_dir, split, on_bad)
    raise ValueError(
        f"preference data: expected hh:DIR, alpaca:DIR, jsonl:FILE or tfds:NAME@DATA_DIR, found {spec!r}"
    )


def _text(row: Row, name: str) -> str:
    value = lookup(row, name)
    if not isinstance(value, str):
        raise BadRecord(name, "text", shown(value))
    return value


def _last_turn(row: Row, name: str) -> tuple[str, str]:
    dialogue = _text(row, name)
    before, turn, response = dialogue.rpartition(HH_TURN)
    if not turn:
        raise BadRecord(name, f"a dialogue with a turn {HH_TURN!r}", shown(dialogue))
    if not response.strip():
        raise BadRecord(name, "a response after the last turn", shown(response))
    return before + turn, response


def _first_difference(a: str, b: str) -> int:
    same = (index for index, (x, y) in enumerate(zip(a, b)) if x != y)
    return next(same, min(len(a), len(b)))


def _check_split(spec: str, split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"{spec}: expected the split 'train' or 'test', found {split!r}")


def _hh_file(folder: Path, split: str) -> Path:
    _check_split(f"hh:{folder}", split)
    names = ("train.jsonl.gz",) if split == "train" else ("dev.jsonl.gz", "test.jsonl.gz")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"hh:{folder}: expected {' or '.join(names)} in that folder, found neither"
    )


def _alpaca_split(split: str):
    def parse(row: Row) -> list[Preference]:
        held_out = zlib.crc32(_text(row, "instruction").encode()) % TEST_SHARE == 0
        return [alpaca_judgement(row)] if held_out == (split == "test") else []

    return parse
