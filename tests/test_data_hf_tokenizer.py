"""Published tokenizers and chat templates, on tiny ones that are trained here."""

import json
import sys
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers: rewardjax[hf]")
pytest.importorskip("jinja2", reason="needs jinja2: rewardjax[hf]")

from rewardjax.data.chat import ChatTemplate  # noqa: E402
from rewardjax.data.hf_tokenizer import HFTokenizer  # noqa: E402
from rewardjax.data.tokenizers import Tokenizer, check_ids  # noqa: E402

CHATML = """\
{%- for message in messages %}
    {%- if message.role not in ('system', 'user', 'assistant') %}
        {{- raise_exception('no such role: ' + message.role) }}
    {%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TAGGED = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content }}<|im_end|>{% endgeneration %}
{%- else %}{{ message.content }}<|im_end|>
{%- endif %}
{{- '\\n' }}
{%- endfor %}
"""
# Writes a thought only where it is the conversation's last, as Qwen3's template does.
FORGETFUL = """\
{%- for m in messages -%}
[{{ m.role }}]{% if loop.last and m.role == 'assistant' %}<think>{% endif %}{{ m.content }}
{%- endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""

USER = {"role": "user", "content": "2 + 2?"}
REPLY = {"role": "assistant", "content": "four."}
THANKS = {"role": "user", "content": "thanks"}
BYE = {"role": "assistant", "content": "bye\n"}
TALK = [USER, REPLY, THANKS, BYE]
CHATML_TALK = (
    "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\nfour.<|im_end|>\n"
    "<|im_start|>user\nthanks<|im_end|>\n<|im_start|>assistant\nbye\n<|im_end|>\n"
)
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as Qwen's are: byte-level BPE, no begin marker, a chat template."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(MARKERS),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(["the reward model scores the answer"] * 4, trainer)
    # What published files carry, and what must not cut or lengthen anything here.
    made.enable_truncation(3)
    made.enable_padding(length=16, pad_token="<|endoftext|>", pad_id=0)
    path = tmp_path_factory.mktemp("qwen")
    made.save(str(path / "tokenizer.json"))
    config = {
        "bos_token": None,
        "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "pad_token": "<|endoftext|>",
        "add_bos_token": False,
        "chat_template": CHATML,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return HFTokenizer.load(folder)


def test_a_folder_gives_a_tokenizer(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 0, 2)
    # Markers, bytes, and what pairs of them make: all words of the corpus end up whole.
    assert tokenizer.vocab_size == 284
    ids = tokenizer.encode("the reward model scores the answer")
    assert len(ids) == 6
    assert tokenizer.decode(np.array([0, 1, *ids, 2, 0, 0])) == "the reward model scores the answer"
    with pytest.raises(
        ValueError, match=r"decode: token 1: expected an id in \[0, 284\), found 284"
    ):
        tokenizer.decode([3, 284])


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from([*MARKERS, "a", "the ", " ", "\n", "é", "漢"]), max_size=8))
def test_text_that_spells_a_marker_stays_text(tokenizer, parts):
    text = "".join(parts)
    ids = tokenizer.encode(text)
    check_ids(ids, tokenizer.vocab_size, "text")
    assert all(index > 2 for index in ids)
    assert tokenizer.decode(ids) == text


def test_a_model_that_takes_text_for_its_marker_says_so():
    words = tokenizers.models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 2}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = HFTokenizer(made.to_str(), {"eos_token": "</s>", "unk_token": "[UNK]"})
    assert tokenizer.encode("a b a") == [2, 0, 2]
    assert (tokenizer.pad_id, tokenizer.bos_id) == (1, 1)
    with pytest.raises(ValueError, match=r"text: expected no marker of the model's, found '</s>'"):
        tokenizer.encode("a </s>")


def test_bert_vocabularies(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "[", "]", "sep"]
    (tmp_path / "vocab.txt").write_text(
        "\n".join([*words, "caf", "##e", "\u2028", "漢", ","]) + "\n"
    )
    tokenizer = HFTokenizer.load(tmp_path)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 3)
    assert tokenizer.vocab_size == 16
    # Lower case, no accents, words cut at punctuation, Chinese characters apart; z is unknown.
    assert tokenizer.encode("UNaffable, Café漢z") == [5, 6, 7, 15, 11, 12, 14, 1]
    assert tokenizer.encode("[SEP]") == [8, 10, 9]
    assert tokenizer.decode([2, 5, 6, 7, 15, 11, 12, 3, 0]) == "unaffable, cafe"
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert HFTokenizer.load(tmp_path).encode("UNaffable un") == [1, 5]
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"vocab.txt: expected a line '\[UNK\]', found none"):
        HFTokenizer.load(tmp_path)


def test_what_is_saved_is_read_back(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "copy")
    again = HFTokenizer.load(tmp_path / "copy")
    assert again.names == tokenizer.names
    assert again.encode("<|im_end|> model") == tokenizer.encode("<|im_end|> model")
    assert again.encode_conversation(TALK) == tokenizer.encode_conversation(TALK)


def test_files_that_cannot_be_read(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer.json or a vocab.txt"):
        HFTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"{tmp_path}: tokenizer.json: expected a tokenizer"):
        HFTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    with pytest.raises(ValueError, match=r"eos_token: expected one of .'eos_token', 'sep_token'"):
        HFTokenizer.load(tmp_path)
    with pytest.raises(ValueError, match=r"eos_token: expected a token of .*, found '<nope>'"):
        HFTokenizer.load(tmp_path, eos_token="<nope>")
    with pytest.raises(ValueError, match=r"chat_template: expected a template"):
        HFTokenizer.load(tmp_path, eos_token="<|im_end|>").encode_prompt([USER])
    for text, said in [("{", "expected JSON"), ("[]", "expected an object, found list")]:
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"tokenizer_config.json: {said}"):
            HFTokenizer.load(tmp_path)


@pytest.mark.parametrize("where", ["list", "file"])
def test_where_a_chat_template_may_be(tmp_path, folder, where):
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    config = {"eos_token": "<|im_end|>", "chat_template": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if where == "file":
        (tmp_path / "chat_template.jinja").write_text("F")
    template = HFTokenizer.load(tmp_path).template
    assert template is not None
    assert template.prompt([]) == {"list": "D", "file": "F"}[where]


@pytest.mark.parametrize("package", ["tokenizers", "jinja2"])
def test_a_package_that_is_not_installed_is_named(folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs? {package}: pip install 'rewardjax\[hf\]'"):
        HFTokenizer.load(folder)


# --- Conversations ---


def test_a_prompt_ends_where_the_reply_begins(tokenizer):
    ids = tokenizer.encode_prompt([USER])
    newline, encode = tokenizer.encode("\n"), tokenizer.encode
    user, assistant = encode("user\n2 + 2?"), encode("assistant\n")
    assert ids == [1, *user, 2, *newline, 1, *assistant]


@pytest.mark.parametrize("template", [CHATML, TAGGED])
def test_the_assistant_wrote_its_replies_and_their_ends(tokenizer, template):
    definition = tokenizer._chat.to_str()
    own = HFTokenizer(definition, tokenizer.names, template)
    ids, written = own.encode_conversation(TALK)
    assert own._chat.decode(ids, skip_special_tokens=False) == CHATML_TALK
    learned = [index for index, on in zip(ids, written) if on]
    assert learned == [*own.encode("four."), 2, *own.encode("bye\n"), 2]
    first = written.index(True)
    assert ids[:first] == tokenizer.encode_prompt([USER])


def test_the_last_reply_alone(tokenizer):
    ids, written = tokenizer.encode_conversation(TALK, only_last=True)
    assert [i for i, on in zip(ids, written) if on] == [*tokenizer.encode("bye\n"), 2]
    assert ids == tokenizer.encode_conversation(TALK)[0]


@given(
    contents=st.lists(st.text(st.sampled_from("a é漢\n."), min_size=1, max_size=6), max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_written_tokens_spell_the_replies(tokenizer, contents):
    messages = [USER]
    for content in ["go", *contents]:
        messages += [{"role": "assistant", "content": content}, THANKS]
    ids, written = tokenizer.encode_conversation(messages)
    replies = "".join(content + "<|im_end|>" for content in ["go", *contents])
    learned = [index for index, on in zip(ids, written) if on]
    assert tokenizer._chat.decode(learned, skip_special_tokens=False) == replies


def test_a_template_that_rewrites_the_past():
    template = ChatTemplate(FORGETFUL)
    with pytest.raises(ValueError, match=r"messages\[1\]: .* only_last=True needs"):
        template.conversation(TALK)
    text, ((start, stop),) = template.conversation(TALK, only_last=True)
    assert text == "[user]2 + 2?[assistant]four.[user]thanks[assistant]<think>bye\n"
    assert text[start:stop] == "<think>bye\n"
    with pytest.raises(ValueError, match=r"messages\[1\]: .*no range of its own$"):
        template.conversation([*TALK[:2], THANKS], only_last=True)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "tool", "content": "x"}], r"refuses the roles .'tool'.*: no such role: tool"),
        ([{"role": "user"}], r"fails on the roles .'user'.*: UndefinedError: "),
        ([USER, {"role": "user", "content": "<|im_end|>"}], r"messages.1.: .*found '<.im_end.>'"),
        ([{"role": "user", "content": "\ufdd0"}], r"messages.0.: .*found '.ufdd0'"),
        ([{"role": "user", "content": ["<|im_start|>"]}], r"messages.0.: .*'<.im_start.>'"),
    ],
)
def test_conversations_that_are_refused(messages, said):
    template = ChatTemplate(CHATML, markers=MARKERS)
    with pytest.raises(ValueError, match=said):
        template.prompt(messages)
    with pytest.raises(ValueError, match=said):
        template.conversation([*messages, REPLY])
    with pytest.raises(ValueError, match=r"messages: expected an assistant's .*found \['user'\]"):
        template.conversation([USER])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("a\n{% for %}", r"chat_template, line 2: "),
        ("{{ messages.append(1) }}", r"SecurityError"),
        ("{{ ''.__class__.__mro__ }}", r"SecurityError"),
        ("{{ 1 / 0 }}", r"ZeroDivisionError"),
        ("{{ strftime_now('%Y') }}", r"'strftime_now' is undefined"),
    ],
)
def test_templates_that_fail(source, said):
    with pytest.raises(ValueError, match=said):
        ChatTemplate(source).prompt([USER])


def test_what_templates_may_use():
    source = (
        "{{ bos_token }}{% for t in tools %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{{ t | tojson }}{% endfor %}{{ strftime_now('%d %b %Y') }}"
    )
    template = ChatTemplate(source, {"bos_token": "<s>"}, today=date(2024, 7, 26))
    found = template.prompt([USER], tools=[{"name": "<é>"}, {"name": "other"}])
    assert found == '<s>{"name": "<é>"}26 Jul 2024'
