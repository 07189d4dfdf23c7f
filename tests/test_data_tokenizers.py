import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardjax.data.tokenizers import (
    CharTokenizer,
    SentencePieceTokenizer,
    check_ids,
    has_doubled_bos,
)

SENTENCE = "the reward model scores each answer and the policy learns from the score"
WORDS = SENTENCE.split()
CORPUS = [
    " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 9)) + f" {i}\n" for i in range(200)
]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def sentencepiece(request):
    return SentencePieceTokenizer.train(CORPUS, 320, request.param)


def test_char_tokenizer():
    tokenizer = CharTokenizer("0123+=")
    assert tokenizer.vocab_size == 9
    assert tokenizer.encode("1+2=3") == [4, 7, 5, 8, 6]
    assert tokenizer.decode([1, 4, 7, 5, 8, 6, 2, 0, 0]) == "1+2=3"
    assert tokenizer.decode(np.array([3, 8])) == "0="
    with pytest.raises(ValueError, match=r"character 2: expected one of '0123\+=', found '4'"):
        tokenizer.encode("1+4")
    with pytest.raises(ValueError, match=r"expected an id in \[0, 9\), found 9"):
        tokenizer.decode([3, 9])


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_char_tokenizer_refuses_an_alphabet(alphabet):
    with pytest.raises(ValueError, match="expected different characters"):
        CharTokenizer(alphabet)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_characters="\u2581", codec="utf-8")))
def test_sentencepiece_reads_any_text_back(sentencepiece, text):
    ids = sentencepiece.encode(text)
    check_ids(ids, sentencepiece.vocab_size, "text")
    assert sentencepiece.decode(ids) == text


def test_sentencepiece_markers_are_never_text(sentencepiece):
    assert (sentencepiece.pad_id, sentencepiece.bos_id, sentencepiece.eos_id) == (0, 1, 2)
    assert sentencepiece.vocab_size == 320
    ids = sentencepiece.encode("<s>the reward</s><pad><unk>")
    assert min(ids) > 3
    assert sentencepiece.decode([1, *sentencepiece.encode("the reward"), 2, 0]) == "the reward"
    assert len(sentencepiece.encode("the reward model")) < len("the reward model")


def test_sentencepiece_training_is_deterministic_and_saved_whole(tmp_path, sentencepiece):
    again = SentencePieceTokenizer.train(iter(CORPUS), 320)
    assert again.model == SentencePieceTokenizer.train(CORPUS, 320).model
    sentencepiece.save(tmp_path / "model")
    loaded = SentencePieceTokenizer.load(tmp_path / "model")
    assert loaded.model == sentencepiece.model
    assert loaded.encode("the policy\n") == sentencepiece.encode("the policy\n")


def test_sentencepiece_learns_from_long_texts():
    # SentencePiece leaves texts of more than 4,192 bytes out unless told otherwise. A character that is
    # in no text learned from would fall back to its two bytes.
    long = "".join(CORPUS) + "é" * 500
    tokenizer = SentencePieceTokenizer.train([*CORPUS, long], 320)
    assert len(long.encode()) > 4192
    assert len(tokenizer.encode("aé")) == 2


def test_sentencepiece_refuses(tmp_path):
    with pytest.raises(ValueError, match="vocab_size 50 on this corpus"):
        SentencePieceTokenizer.train(CORPUS, 50)
    with pytest.raises(ValueError, match="vocab_size 90000 on this corpus"):
        SentencePieceTokenizer.train(CORPUS, 90000)
    with pytest.raises(ValueError, match="on this corpus"):
        SentencePieceTokenizer.train([], 300)
    (tmp_path / "junk").write_bytes(b"no model")
    with pytest.raises(ValueError, match="junk: model: expected a SentencePiece model"):
        SentencePieceTokenizer.load(tmp_path / "junk")


@pytest.mark.parametrize(
    ("ids", "wrong"), [([0, 7, 10], 10), ([-1, 3], -1), ([[1, 2], [3, 99]], 99)]
)
def test_check_ids(ids, wrong):
    check_ids([0, 9], 10, "here")
    check_ids([], 10, "here")
    with pytest.raises(ValueError, match=rf"here: token \d: .*\[0, 10\), found {wrong}"):
        check_ids(np.array(ids), 10, "here")


def test_has_doubled_bos():
    assert has_doubled_bos([1, 1, 5], 1)
    assert not has_doubled_bos([1, 5, 1, 1], 1)
    assert not has_doubled_bos([1], 1)
    assert not has_doubled_bos([], 1)
