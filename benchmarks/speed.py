"""Speed without a GPU: stage 1, encoding and start-up, each against something else that is run in turns with it.

Useful tokens are those of contexts and targets, with the end of each text. Bottleneck tokens and padding do not count.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from rows import HERE, Row, in_turns, seconds

Example = tuple[list[int], list[int]]
"""Ids of a context and of a target, without any that a tokenizer adds."""
Loss = Callable[[list[Example]], torch.Tensor]

BASE = "smollm2-135m"
TOKENS = 128
"""Of an encoded document, without what a tokenizer appends."""


def startup(command: str) -> list[Row]:
    """Measure importing the package, and ``lbr-st --help`` against importing the library that parses it."""

    def run(*words: str) -> Callable[[], float]:
        return lambda: seconds(lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL))

    def python(code: str) -> Callable[[], float]:
        return run(sys.executable, "-c", code)

    transformers, everything = "import sentence_transformers", "[getattr(lbr_st, name) for name in lbr_st.__all__]"
    every, bare = in_turns(python(f"import lbr_st; {everything}"), python(transformers), 2)
    imports = Row("import lbr_st", transformers, command, 1.1, at_most=True)
    imports.note = "The names are imported on first use; with all of them at once see below."
    imports.details["with every public name"] = f"{statistics.median(every) / statistics.median(bare):.2f}"
    imports.of_turns(python("import lbr_st"), python(transformers), 5)

    python(
        "import sys\ntry:\n from lbr_st.cli import main; main(['--help'])\nexcept SystemExit:\n pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )()
    helps = Row("lbr-st --help", "import jsonargparse", command, 3.0, at_most=True)
    helps.note = "And no torch is imported: checked in the same run."
    program = str(Path(sys.executable).with_name("lbr-st"))
    return [imports, helps.of_turns(run(program, "--help"), python("import jsonargparse"), 9)]


# --- stage 1 ----------------------------------------------------------------------------------------------------------


def chebi_examples(tokenizer: Any, count: int, longest: int) -> list[Example]:
    """Return name → definition pairs of ChEBI as ids."""
    from lbr_st.domains.tasks import domain_task

    pairs = domain_task("chebi").train_pairs.shuffle(seed=0).select(range(count))
    options = {"add_special_tokens": False, "truncation": True, "max_length": longest}
    contexts = tokenizer(["query: " + text for text in pairs["query"]], **options)["input_ids"]
    return list(zip(contexts, tokenizer(list(pairs["document"]), **options)["input_ids"], strict=True))


def random_ids(sizes: list[tuple[int, int]], vocabulary: int, first: int = 0) -> list[Example]:
    """Return examples of random ids from ``first`` on, in given lengths of context and target."""
    draw = random.Random(0)

    def ids(size: int) -> list[int]:
        return [first + draw.randrange(vocabulary) for _ in range(size)]

    return [(ids(context), ids(target)) for context, target in sizes]


def lengths_of(name: str, count: int, longest: int) -> list[tuple[int, int]]:
    """Return lengths of a real dataset's contexts and targets, which ``lengths.json`` has."""
    lengths = json.loads((HERE / "lengths.json").read_text(encoding="utf-8"))[name]["lengths"]
    return [(min(a, longest), min(b, longest)) for a, b in random.Random(0).sample(lengths, count)]


def useful(examples: list[Example]) -> int:
    """Return how many tokens of text there are, with the end of each example."""
    return sum(len(context) + len(target) + 1 for context, target in examples)


class Training:
    """Steps of an optimiser on batches of ``size`` examples; each call takes some and returns useful tokens a second.

    With ``merged``, adapters are trained as our trainer does, in one product a layer; without, in peft's own way.
    """

    def __init__(
        self, model: Any, loss: Loss, examples: list[Example], size: int, steps: int = 1, *, merged: bool = True
    ) -> None:
        from lbr_st.compute import use_bfloat16

        self.model, self.loss, self.steps, self.merged = model, loss, steps, merged
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=1e-5)
        self.batches = cycle([examples[i : i + size] for i in range(0, len(examples) - size + 1, size)])
        self.bfloat16 = use_bfloat16("auto", model.device, model)

    def __call__(self) -> float:
        """Take the steps."""
        from lbr_st.model.merged import merged_while_training

        chosen = [next(self.batches) for _ in range(self.steps)]

        def work() -> None:
            for batch in chosen:
                with torch.autocast(self.trained[0].device.type, torch.bfloat16, enabled=self.bfloat16):
                    loss = self.loss(batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
                self.optimiser.step()
                self.optimiser.zero_grad()

        with merged_while_training(self.model) if self.merged else nullcontext():
            return sum(useful(batch) for batch in chosen) / seconds(work)


def ours(model: Any, **options: Any) -> Loss:
    """Return the loss of stage 1 on examples, padded as a data collator does it."""
    from torch.nn.utils.rnn import pad_sequence

    from lbr_st.bottleneck.loss import IBGenerativeLoss
    from lbr_st.bottleneck.passes import backbone_of

    loss, backbone = IBGenerativeLoss(model, **options).train(), backbone_of(model)
    device, pad = backbone.model.device, backbone.tokenizer.pad_token_id

    def of_examples(examples: list[Example]) -> torch.Tensor:
        columns = []
        for texts in zip(*examples, strict=True):
            ids = [torch.tensor([*text, *backbone.closing_ids]) for text in texts]
            mask = pad_sequence([torch.ones_like(one) for one in ids], True)
            columns.append({"input_ids": pad_sequence(ids, True, pad).to(device), "attention_mask": mask.to(device)})
        return torch.stack(list(loss(columns).values())).sum()

    return of_examples


def plain(model: Any, eos: int, row: int) -> Loss:
    """Return transformers' causal language-modelling loss on the examples' tokens in full rows, as trainers pack.

    The texts follow one another with an end-of-text token between, cut into rows of ``row`` tokens, so that there is no
    padding at all. What does not fill a row makes a shorter batch of its own.
    """

    def loss(examples: list[Example]) -> torch.Tensor:
        stream = torch.tensor([token for c, t in examples for token in [*c, *t, eos]], device=model.device)
        whole = len(stream) // row * row
        parts = [part for part in (stream[:whole].view(-1, row), stream[whole:][None]) if part.numel()]
        losses = [part.numel() * model(input_ids=part, labels=part, use_cache=False).loss for part in parts]
        return sum(losses) / len(stream)

    return loss


def stage1(command: str) -> list[Row]:
    """Measure stage 1 against plain language modelling, with adapters and with every weight."""
    name = "stage-1 useful tokens/s, attention bottleneck, CPU"
    return [
        against_plain(name, command, lora=True, pairs=7),
        against_plain(f"{name}, every weight trained", command, lora=False, pairs=5),
    ]


def against_plain(name: str, command: str, *, lora: bool, pairs: int) -> Row:
    """Measure stage 1 on ChEBI against plain causal language modelling of the same tokens."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    import lbr_st
    from lbr_st.bottleneck.passes import backbone_of
    from lbr_st.model.bases import resolve_base

    size = 32
    model = lbr_st.build_model(BASE, lora_rank=32 if lora else None, max_seq_length=256).train()
    causal = AutoModelForCausalLM.from_pretrained(resolve_base(BASE), dtype=torch.float32).to(model.device).train()
    if lora:
        causal.add_adapter(LoraConfig(r=32, lora_alpha=64, target_modules="all-linear"))
    tokenizer = backbone_of(model).tokenizer
    examples = chebi_examples(tokenizer, 4096, 192)
    first = Training(model, ours(model), examples, size)
    second = Training(causal, plain(causal, tokenizer.eos_token_id, 512), examples, size, merged=False)
    row = Row(name, "plain causal-LM training of the same tokens, rows of 512 without padding", command, 0.95)
    row.note = (
        f"SmolLM2-135M, ChEBI name → definition, {size} pairs a step, {'LoRA rank 32' if lora else 'every weight'}, "
        f"AdamW, {'bfloat16 autocast' if first.bfloat16 else 'float32'}, k = 4, context weight 0.1; transformers' "
        "model and loss on the other side, its adapters on the same layers."
    )
    return row.of_turns(first, second, pairs, middle="tokens/s")


def adapters(command: str) -> list[Row]:
    """Measure adapters added to the weight against peft's own layers, which add them to the output."""
    import lbr_st
    from lbr_st.bottleneck.passes import backbone_of

    size = 64
    model = lbr_st.build_model(BASE, lora_rank=16, max_seq_length=64).train()
    examples, loss = chebi_examples(backbone_of(model).tokenizer, 2048, 24), ours(model, context_weight=0.0)
    first, second = (Training(model, loss, examples, size, merged=merged) for merged in (True, False))
    row = Row("stage-1 useful tokens/s, adapters in one product a layer, CPU", "peft's own LoRA layers", command)
    row.note = (
        f"SmolLM2-135M, LoRA rank 16, ChEBI name → definition cut at 24 tokens each, {size} pairs a step, no context "
        "loss, bfloat16 autocast."
    )
    return [row.of_turns(first, second, 9)]


def packing(command: str) -> list[Row]:
    """Measure packed rows against padded ones under dense masks, at the lengths of two datasets."""
    return [
        packed_against_padded("chebi", "ChEBI definitions", command, pairs=5, size=32, longest=192),
        packed_against_padded("medquad", "MedQuAD answers", command, pairs=3, size=16, longest=512),
    ]


def packed_against_padded(lengths: str, title: str, command: str, *, pairs: int, size: int, longest: int) -> Row:
    """Measure packed rows against padded ones at a dataset's lengths."""
    import lbr_st
    from lbr_st.bottleneck.passes import backbone_of

    model = lbr_st.build_model(BASE, lora_rank=32, max_seq_length=longest + 8).train()
    examples = random_ids(lengths_of(lengths, 512, longest), min(backbone_of(model).bottleneck_ids))
    first, second = (Training(model, ours(model, packed=packed), examples, size) for packed in (True, False))
    row = Row(f"stage-1 useful tokens/s, packed, lengths of {title}", "padded rows under dense masks", command, 1.5)
    steps = [examples[i : i + size] for i in range(0, 512, size)]
    padded = sum(size * max(len(c) + len(t) + 4 for c, t in step) for step in steps)
    row.note = (
        f"SmolLM2-135M with LoRA, {size} pairs a step in random order, texts cut at {longest} tokens, random ids of "
        f"the dataset's lengths (lengths.json); {sum(map(useful, steps)) / padded:.0%} of a padded row is text."
    )
    return row.of_turns(first, second, pairs)


# --- encoding ---------------------------------------------------------------------------------------------------------


def documents(tokenizer: Any, count: int) -> list[str]:
    """Return texts of 128 tokens each, made of ChEBI's definitions."""
    from lbr_st.domains.tasks import domain_task

    made: list[str] = []
    stream: list[int] = []
    for text in domain_task("chebi").train_texts.shuffle(seed=0)["text"]:
        stream += tokenizer(text + " ", add_special_tokens=False)["input_ids"]
        while len(stream) >= TOKENS and len(made) < count:
            document = tokenizer.decode(stream[:TOKENS])
            stream = stream[TOKENS:]
            # Decoded and tokenized again, a text may have a token more or less. Those do not count.
            if len(tokenizer(document, add_special_tokens=False)["input_ids"]) == TOKENS:
                made.append(document)
        if len(made) == count:
            break
    return made


class Worker:
    """A process that has one model and encodes the documents whenever it is told to.

    Two models of different shapes in one process disturb each other: freed memory of one does not fit the other, and
    fresh pages cost as much as the tokens that are compared.
    """

    def __init__(self, model: str, texts: list[str]) -> None:
        command = [sys.executable, __file__, model]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.count = len(texts)
        self._ask(json.dumps(texts))

    def __call__(self) -> float:
        """Encode once; return documents a second."""
        return self.count / float(self._ask("encode"))

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        for answer in self.process.stdout:
            if answer.startswith("> "):
                return answer[2:]
        raise RuntimeError("a worker ended early")


def serve(model: str) -> None:
    """Be a worker: read the documents, then encode them for each further line."""
    from sentence_transformers import SentenceTransformer

    from lbr_st.model.load import mean_pooling

    loaded = mean_pooling(BASE, 256) if model == "bare" else SentenceTransformer(model)
    texts = json.loads(sys.stdin.readline())
    print("> ready", flush=True)
    for _ in sys.stdin:
        print(f"> {seconds(lambda: loaded.encode(texts, batch_size=16, show_progress_bar=False))}", flush=True)


def encoding(command: str) -> list[Row]:
    """Measure a release against ``Transformer + Pooling("mean")`` on the same backbone."""
    import lbr_st
    from lbr_st.bottleneck.passes import backbone_of

    model, count = lbr_st.build_model(BASE, max_seq_length=256), 32
    texts = documents(backbone_of(model).tokenizer, count)
    name = f"encode throughput of the released model, {TOKENS}-token documents"
    row = Row(name, 'the same backbone in Transformer + Pooling("mean")', command, 0.96)
    row.note = (
        f"SmolLM2-135M, float32, {count} documents, batches of 16, no prompt on either side; each model in a process "
        f"of its own, in turns. The k = 4 tokens alone make {TOKENS}/{TOKENS + 4} = {TOKENS / (TOKENS + 4):.3f}. "
        "Weights do not matter to the speed, so the release is of the untrained base."
    )
    with tempfile.TemporaryDirectory() as folder:
        released = Worker(str(lbr_st.release(model, Path(folder) / "release")), texts)
        return [row.of_turns(released, Worker("bare", texts), 31, warmups=2)]


if __name__ == "__main__":
    serve(sys.argv[1])
