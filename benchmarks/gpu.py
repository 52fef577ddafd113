"""Rows that need a GPU: stage 1 against Hugging Face's Trainer with packing, FLOP utilisation, and encoding.

    python benchmarks/run.py --gpu     # on a machine with one
    python benchmarks/gpu.py           # the same code with a tiny model, to see that it runs; a CPU will do

Models have random weights in the shape of published ones, which changes nothing about speed and needs no download.
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rows import Row, seconds, synchronise
from speed import TOKENS, Example, Training, lengths_of, ours, random_ids, useful
from transformers import TrainerCallback

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SHAPES = {
    "0.6B": dict(zip(_SIZES, (1024, 3072, 28, 16, 8), strict=True)) | {"head_dim": 128, "vocab_size": 151_936},
    "135M": dict(zip(_SIZES, (576, 1536, 30, 9, 3), strict=True)) | {"head_dim": 64, "vocab_size": 49_152},
    "tiny": dict(zip(_SIZES, (64, 128, 2, 4, 2), strict=True)) | {"head_dim": 16, "vocab_size": 1024},
}
WORDS = 3
"""Ids before this one are special tokens."""


def random_base(folder: Path, shape: str) -> str:
    """Write a base with random weights and a tokenizer of as many words as it has rows, but 16."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    write_tokenizer(folder, SHAPES[shape]["vocab_size"] - 16)
    torch.manual_seed(0)
    kind = LlamaConfig if shape == "135M" else Qwen3Config
    config = kind(**SHAPES[shape], tie_word_embeddings=True, eos_token_id=2, pad_token_id=1, bos_token_id=None)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def write_tokenizer(folder: Path, size: int) -> None:
    """Write a tokenizer of so many tokens: words "w0", "w1" and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<pad>", "<eos>", *(f"w{number}" for number in range(size - WORDS))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)


class Timer(TrainerCallback):
    """Measures the seconds of the steps after the first two, for either trainer."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time."""
        synchronise()
        now = time.perf_counter()
        self.started = now if state.global_step <= 2 else self.started
        self.rate = (state.global_step - 2) / (now - self.started) if state.global_step > 2 else 0.0


def trainer_tokens_per_second(base: str, examples: list[Example], row: int, steps: int, bfloat16: bool) -> float:
    """Train the plain causal LM with Hugging Face's Trainer on full rows; return tokens a second."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator

    stream = [token for context, target in examples for token in [*context, *target, 2]]
    needed = (steps + 2) * row
    stream = (stream * (needed // len(stream) + 1))[:needed]
    rows = [{"input_ids": stream[i : i + row], "labels": stream[i : i + row]} for i in range(0, needed, row)]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}
    where = {"bf16": bfloat16, "use_cpu": not torch.cuda.is_available()}
    timer = Timer()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, per_device_train_batch_size=1, max_steps=steps + 2, **quiet, **where)
        options = {"data_collator": default_data_collator, "train_dataset": rows, "callbacks": [timer]}
        Trainer(model, arguments, **options).train()
    return row * timer.rate


def our_tokens_per_second(base: str, examples: list[Example], row: int, steps: int, bfloat16: bool) -> float:
    """Train stage 1 with our trainer on packed rows of up to ``row`` tokens; return useful tokens a second."""
    from datasets import Dataset

    import lbr_st
    from lbr_st.recipe import LearnConfig
    from lbr_st.training.learn import generative_tokens
    from lbr_st.training.trainer import LBRTrainer, training_arguments

    texts = [[" ".join(f"w{token - WORDS}" for token in text) for text in pair] for pair in examples]
    pairs = Dataset.from_dict(dict(zip(("context", "target"), map(list, zip(*texts, strict=True)), strict=True)))
    model = lbr_st.build_model(base, max_seq_length=1024)
    timer, loss = Timer(), lbr_st.IBGenerativeLoss(model)
    config = LearnConfig(max_steps=steps + 2, batch_size=10_000, batch_tokens=row)
    quiet = {"disable_tqdm": True, "save_strategy": "no", "precision": "bfloat16" if bfloat16 else "float32"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(model, loss, folder, config, evaluate=False, **quiet)
        tokens = generative_tokens(model, pairs, "attention", None)
        LBRTrainer(model, args=arguments, train_dataset=tokens, loss=loss, callbacks=[timer]).train()
    # The budget also counts the tokens appended to each text, 2k an example, which are not useful.
    share = useful(examples) / sum(len(c) + len(t) + 8 for c, t in examples)
    return row * share * timer.rate


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
    run = Training(model, ours(model, context_weight=0.1), examples, size, steps, merged=False)
    tokens, labelled = sum(len(c) + len(t) + 4 for c, t in examples), sum(len(c) + len(t) for c, t in examples)
    flop = 6 * (linear * tokens + backbone.head.weight.numel() * labelled) / useful(examples)  # of a useful token
    run()
    return [run() * flop / rate for _ in range(5)]


def minilm(folder: Path, vocabulary: int) -> str:
    """Write an embedder with random weights in the shape of all-MiniLM-L6-v2."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    write_tokenizer(folder / "bert", vocabulary)
    BertModel(BertConfig(vocab_size=vocabulary, pad_token_id=1, **sizes)).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=256)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "minilm"))
    return str(folder / "minilm")


def encoding(command: str, shape: str, count: int) -> list[Row]:
    """Measure how fast a release encodes, against its bare backbone and against a smaller embedder's shape."""
    from sentence_transformers import SentenceTransformer

    import lbr_st
    from lbr_st.model.load import mean_pooling

    vocabulary = 30_522 if shape != "tiny" else 1000
    texts = [
        " ".join(f"w{token}" for token in text) for text, _ in random_ids([(TOKENS, 0)] * count, vocabulary - WORDS)
    ]
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder) / "base", shape)
        release = str(lbr_st.release(lbr_st.build_model(base, max_seq_length=256), Path(folder) / "release"))
        models = [SentenceTransformer(release), mean_pooling(base, 256)]
        models.append(SentenceTransformer(minilm(Path(folder), vocabulary)))

    def rate(model: Any) -> float:
        return count / seconds(lambda: model.encode(texts, batch_size=256, show_progress_bar=False))

    turns = [partial(rate, model.to(torch.bfloat16)) for model in models]
    name = f"encode throughput of the released model on a GPU, {TOKENS}-token documents"
    first = Row(name, 'the same backbone in Transformer + Pooling("mean")', command, 0.96)
    second = Row(f"{name}, next to a smaller model", "all-MiniLM-L6-v2's shape", command)
    for row, other in ((first, turns[1]), (second, turns[2])):
        row.note = (
            f"SmolLM2-135M's shape, random weights, bfloat16, {count:,} documents in batches of 256, no prompt. Words "
            "are tokens here, so that tokenizing is faster than usual on either side."
        )
        row.of_turns(turns[0], other, 9, middle="documents/s")
    return [first, second]


def rows(command: str, shape: str = "0.6B") -> list[Row]:
    """Measure the rows of this file."""
    gpu = torch.cuda.is_available()
    if not gpu and shape != "tiny":
        sys.exit("There is no GPU here. The rows stay as they are.")
    row, size, steps = (8192, 100, 10) if gpu else (512, 8, 2)
    note = "Qwen3-0.6B's shape, random weights, every weight trained, bfloat16 autocast, ChEBI's lengths."
    name, other = "stage-1 useful tokens/s on a GPU, packed rows of 8k tokens", "Hugging Face Trainer with packing"
    first = Row(name, f"{other}, same backbone", command, 0.95, note=note)
    name = "model FLOP utilisation in stage 1, 0.6B shape, one H100"
    second = Row(name, "the chip's measured matrix rate", command, 0.40, note=note)
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder), shape)
        examples = random_ids(lengths_of("chebi", 1024, 512), SHAPES[shape]["vocab_size"] - 22, WORDS)
        given = (base, examples, row, steps, gpu)
        turns = (lambda: our_tokens_per_second(*given)), (lambda: trainer_tokens_per_second(*given))
        first.of_turns(*turns, 3 if gpu else 1, warmups=0)
        rate = matrix_rate(8192 if gpu else 512, gpu)
        details = {"matrix rate, TFLOP/s": round(rate / 1e12, 1)}
        second.measured(utilisation(base, examples, size, steps, rate), **details)
    return [first, second, *encoding(command, "135M" if gpu else shape, 4096 if gpu else 16)]


if __name__ == "__main__":
    for made in rows("python benchmarks/gpu.py", "tiny"):
        print(made)
