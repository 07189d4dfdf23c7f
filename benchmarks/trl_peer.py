"""The other side of `benchmarks.lm_steps`: TRL's trainers and transformers' generate, on the CPU.

    python trl_peer.py BENCHMARK SHAPES_JSON REPEATS

Run by a Python that has torch, transformers, trl and datasets. Prints `{"seconds": ...}`: the
median of a step.
"""

import json
import random
import statistics
import sys
import tempfile
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

LETTERS = "abcdefghijklmno"  # with pad and eos: the 17 token ids of `Shapes.vocab`


class Clock(TrainerCallback):
    """Notes when each optimisation step ended."""

    def __init__(self):
        self.times = []

    def on_step_end(self, *arguments, **named):
        """One step is over."""
        self.times.append(time.perf_counter())

    def median(self) -> float:
        """Median seconds a step, the first three left out."""
        return statistics.median(b - a for a, b in zip(self.times[2:], self.times[3:]))


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter."""
    ids = {token: i for i, token in enumerate(["<pad>", "<eos>", *LETTERS])}
    base = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    base.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def config(s: dict, **more) -> Qwen2Config:
    """The same sizes as ours."""
    return Qwen2Config(
        vocab_size=s["vocab"],
        hidden_size=s["width"],
        intermediate_size=4 * s["width"],
        num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"],
        num_key_value_heads=s["heads"],
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **more,
    )


def letters(n: int) -> str:
    """Random text of `n` tokens."""
    return "".join(random.choice(LETTERS) for _ in range(n))


def trained(trainer_class, config_class, s: dict, repeats: int, batch: int, **arguments) -> float:
    """Seconds a step of one of TRL's trainers."""
    clock = Clock()
    settings = arguments.pop("settings", {})
    with tempfile.TemporaryDirectory() as folder:
        options = config_class(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=repeats + 3,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_steps=1000,
            disable_tqdm=True,
            gradient_checkpointing=False,
            **settings,
        )
        trainer_class(
            args=options, processing_class=tokenizer(), callbacks=[clock], **arguments
        ).train()
    return clock.median()


def grpo_step(s: dict, repeats: int) -> float:
    """A rollout and its update."""
    rows = Dataset.from_list([{"prompt": letters(s["prompt"])} for _ in range(2048)])

    def reward(prompts, completions, **columns):
        return [float(text.count("b")) for text in completions]

    settings = {
        "num_generations": s["group"],
        "max_completion_length": s["new"],
        "generation_kwargs": {"min_new_tokens": s["new"]},
        "beta": 0.0,
    }
    model = Qwen2ForCausalLM(config(s))
    return trained(
        GRPOTrainer,
        GRPOConfig,
        s,
        repeats,
        s["prompts"] * s["group"],
        model=model,
        reward_funcs=reward,
        train_dataset=rows,
        settings=settings,
    )


def preference_rows(s: dict) -> Dataset:
    """Random pairs of our lengths (TRL adds the end token, so one letter fewer)."""
    n = s["new"] - 1
    return Dataset.from_list(
        [
            {"prompt": letters(s["prompt"]), "chosen": letters(n), "rejected": letters(n)}
            for _ in range(1024)
        ]
    )


def dpo_step(s: dict, repeats: int) -> float:
    """One update on pairs, the reference scored in the same step."""
    model = Qwen2ForCausalLM(config(s))
    reference = Qwen2ForCausalLM(config(s))
    rows = preference_rows(s)
    return trained(
        DPOTrainer,
        DPOConfig,
        s,
        repeats,
        s["pairs"],
        model=model,
        ref_model=reference,
        train_dataset=rows,
    )


def reward_model_step(s: dict, repeats: int) -> float:
    """One Bradley-Terry update on pairs."""
    model = Qwen2ForSequenceClassification(config(s, num_labels=1))
    rows = preference_rows(s)
    return trained(
        RewardTrainer, RewardConfig, s, repeats, s["pairs"], model=model, train_dataset=rows
    )


def generation(s: dict, repeats: int) -> float:
    """Sampling alone."""
    model = Qwen2ForCausalLM(config(s)).eval()
    shape = (s["prompts"] * s["group"], s["prompt"])
    tokens = torch.randint(2, s["vocab"], shape)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.no_grad():
            model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                max_new_tokens=s["new"],
                min_new_tokens=s["new"],
            )
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    torch.manual_seed(0)
    random.seed(0)
    benchmarks = {f.__name__: f for f in (grpo_step, dpo_step, reward_model_step, generation)}
    seconds = benchmarks[sys.argv[1]](json.loads(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps({"seconds": seconds}))
