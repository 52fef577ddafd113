"""Rows that need a GPU: stage 1 against Hugging Face's Trainer with packing, and model FLOP utilisation.

    python benchmarks/run.py --gpu          # on a machine with one; everything else needs none
    python benchmarks/gpu.py --tiny         # the same code on a CPU with a tiny model, to see that it runs

Models have random weights in the shape of Qwen3-0.6B, which changes nothing about speed and needs no download.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rows import Row, seconds, synchronise
from stage1 import Example, Training, examples_of_lengths, ours, useful
from transformers import TrainerCallback

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SHAPES = {
    "0.6B": dict(zip(_SIZES, (1024, 3072, 28, 16, 8), strict=True)) | {"head_dim": 128, "vocab_size": 151_936},
    "tiny": dict(zip(_SIZES, (64, 128, 2, 4, 2), strict=True)) | {"head_dim": 16, "vocab_size": 1024},
}
WORDS = 3
"""Ids before this one are special tokens."""


def random_base(folder: Path, shape: str) -> str:
    """Write a base with random weights and a tokenizer of as many words as it has rows, but 16."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    sizes = SHAPES[shape]
    words = ["<unk>", "<pad>", "<eos>", *(f"w{number}" for number in range(sizes["vocab_size"] - 19))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(**sizes, tie_word_embeddings=True, eos_token_id=2, pad_token_id=1, bos_token_id=None)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


class Timer(TrainerCallback):
    """Seconds of the steps after the first two; for either trainer."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time."""
        synchronise()
        now = time.perf_counter()
        self.started = now if state.global_step <= 2 else self.started
        self.steps, self.seconds = state.global_step - 2, now - self.started


def trainer_tokens_per_second(base: str, examples: list[Example], row: int, steps: int, bfloat16: bool) -> float:
    """Train the plain causal LM with Hugging Face's Trainer on full rows; return tokens a second."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    stream = [token for context, target in examples for token in [*context, *target, 2]]
    needed = (steps + 2) * row
    stream = (stream * (needed // len(stream) + 1))[:needed]
    rows = [{"input_ids": stream[i : i + row], "labels": stream[i : i + row]} for i in range(0, needed, row)]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=1,
            max_steps=steps + 2,
            bf16=bfloat16,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=not torch.cuda.is_available(),
        )
        timer = Timer()

        def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
            return {name: torch.tensor([one[name] for one in batch]) for name in batch[0]}

        Trainer(model, arguments, data_collator=collate, train_dataset=rows, callbacks=[timer]).train()
    return timer.steps * row / timer.seconds


def our_tokens_per_second(base: str, examples: list[Example], row: int, steps: int, bfloat16: bool) -> float:
    """Train stage 1 with our trainer on packed rows of up to ``row`` tokens; return useful tokens a second."""
    from datasets import Dataset

    import lbr_st
    from lbr_st.recipe import LearnConfig
    from lbr_st.training.learn import generative_tokens
    from lbr_st.training.trainer import LBRTrainer as GuardedTrainer
    from lbr_st.training.trainer import training_arguments

    pairs = Dataset.from_dict(
        {
            name: [" ".join(f"w{token - WORDS}" for token in text) for text in texts]
            for name, texts in zip(("context", "target"), zip(*examples, strict=True), strict=True)
        }
    )
    model = lbr_st.build_model(base, max_seq_length=1024)
    timer, loss = Timer(), lbr_st.IBGenerativeLoss(model)
    config = LearnConfig(max_steps=steps + 2, batch_size=10_000, batch_tokens=row)
    precision = "bfloat16" if bfloat16 else "float32"
    quiet = {"show_progress_bar": False, "save_strategy": "no"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(model, loss, folder, config, evaluate=False, precision=precision, **quiet)
        tokens = generative_tokens(model, pairs, "attention", None)
        GuardedTrainer(model, args=arguments, train_dataset=tokens, loss=loss, callbacks=[timer]).train()
    # The budget also counts the tokens appended to each text, 2k an example, which are not useful.
    share = useful(examples) / sum(len(c) + len(t) + 8 for c, t in examples)
    return timer.steps * row * share / timer.seconds


def matrix_rate(size: int, bfloat16: bool) -> float:
    """Return the chip's measured rate of a square matrix product, in FLOP/s."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if bfloat16 else torch.float32) for _ in "ab")
    for _ in range(3):
        a @ b
    return 2 * size**3 * 20 / seconds(lambda: [a @ b for _ in range(20)])


def utilisation(base: str, examples: list[Example], size: int, steps: int, rate: float) -> list[float]:
    """Return model FLOP utilisation of stage 1: 6 FLOP a weight and token, the head's for labelled tokens only.

    Attention itself does not count, nor does anything computed twice.
    """
    import lbr_st
    from lbr_st.bottleneck.passes import backbone_of

    model = lbr_st.build_model(base, max_seq_length=1024).train()
    backbone = backbone_of(model)
    linear = sum(m.weight.numel() for m in backbone.decoder.modules() if isinstance(m, torch.nn.Linear))
    head = backbone.head.weight.numel()
    run = Training(model, ours(model, context_weight=0.1), examples, size, steps, merged=False)
    tokens = sum(len(c) + len(t) + 4 for c, t in examples) / len(examples)
    labelled = sum(len(c) - 1 + len(t) + 1 for c, t in examples) / len(examples)
    own = useful(examples) / len(examples)
    flop = 6 * (linear * tokens + head * labelled) / own  # a useful token's
    run()
    return [run() * flop / rate for _ in range(5)]


def rows(command: str, shape: str = "0.6B") -> list[Row]:
    """Measure the rows of this file."""
    gpu = torch.cuda.is_available()
    row, size, steps = (8192, 100, 10) if gpu else (512, 8, 2)
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder), shape)
        examples = examples_of_lengths("chebi", 1024, SHAPES[shape]["vocab_size"] - 22, 512, first=WORDS)
        given = (base, examples, row, steps, gpu)
        first, second = unmeasured(command)
        first.of_turns(
            lambda: our_tokens_per_second(*given), lambda: trainer_tokens_per_second(*given), 3 if gpu else 1, 0
        )
        rate = matrix_rate(8192 if gpu else 512, gpu)
        details = {"matrix rate, TFLOP/s": round(rate / 1e12, 1)}
        second.measured(utilisation(base, examples, size, steps, rate), **details)
    return [first, second]


def unmeasured(command: str) -> list[Row]:
    """Return the rows of this file as they stand without a GPU."""
    first = Row(
        "stage-1 useful tokens/s on a GPU, packed rows of 8k tokens",
        "Hugging Face Trainer with packing, same backbone",
        command,
        0.95,
    )
    first.note = "Qwen3-0.6B's shape, random weights, every weight trained, bfloat16 autocast, ChEBI's lengths."
    second = Row(
        "model FLOP utilisation in stage 1, 0.6B shape, one H100", "the chip's measured matrix rate", command, 0.40
    )
    second.note = first.note
    return [first, second]


def main() -> None:
    """Run it all and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="A tiny model, to see that the code runs.")
    given = parser.parse_args()
    for row in rows("python benchmarks/run.py --gpu", "tiny" if given.tiny else "0.6B"):
        print(row)


if __name__ == "__main__":
    main()
