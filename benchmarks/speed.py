"""Speed without a GPU: stage 1, encoding and start-up, each against something else that is run in turns with it.

Useful tokens are those of contexts and targets, with the end of each text. Bottleneck tokens and padding do not count.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from rows import HERE, Row, Worker, answer, in_turns, seconds

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
        from lbr_st.compute import hold_on, use_bfloat16

        hold_on()
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


def ours(model: Any, *, in_pieces: bool = False, **options: Any) -> Loss:
    """Return the loss of stage 1 on examples, padded as a data collator does it; ``in_pieces`` as our trainer cuts."""
    from datasets import Dataset
    from torch.nn.utils.rnn import pad_sequence

    from lbr_st.bottleneck.loss import IBGenerativeLoss
    from lbr_st.bottleneck.passes import backbone_of
    from lbr_st.training.memory import limit_pieces
    from lbr_st.training.tokens import NUM_TOKENS

    loss, backbone = IBGenerativeLoss(model, **options).train(), backbone_of(model)
    if in_pieces:
        rows = Dataset.from_dict({NUM_TOKENS: [1]})
        with tempfile.TemporaryDirectory() as folder:
            limit_pieces(model, loss, rows, Path(folder), precision="auto", resume=False)
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
        against_plain(name, command, lora=True, pairs=7, floor=2.2),
        against_plain(f"{name}, every weight trained", command, lora=False, pairs=5, floor=0.95),
    ]


def against_plain(name: str, command: str, *, lora: bool, pairs: int, floor: float) -> Row:
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
    first = Training(model, ours(model, in_pieces=True), examples, size)
    second = Training(causal, plain(causal, tokenizer.eos_token_id, 512), examples, size, merged=False)
    row = Row(name, "plain causal-LM training of the same tokens, rows of 512 without padding", command, floor)
    row.note = (
        f"SmolLM2-135M, ChEBI name → definition, {size} pairs a step, {'LoRA rank 32' if lora else 'every weight'}, "
        f"AdamW, {'bfloat16 autocast' if first.bfloat16 else 'float32'}, whichever is faster here, k = 4, context "
        "weight 0.1, in pieces as our trainer chooses them; transformers' model and loss on the other side, its "
        "adapters on the same layers. Freed memory is kept for both."
    )
    return row.of_turns(first, second, pairs, middle="tokens/s")


def product(
    stage: str, model: dict[str, Any], pairs: dict[str, list[str]], tree: Path, *, steps: int = 1, **config: Any
) -> Worker:
    """Return a process that takes steps as a checkout's own trainer does; see ``steps.py``."""
    setting = {"stage": stage, "model": model, "pairs": pairs, "steps": steps, "config": config}
    worker = Worker("steps.py", setting, tree)
    if not Path(worker.ready["lbr_st"]).resolve().is_relative_to(tree.resolve()):
        raise RuntimeError(f"{worker.ready['lbr_st']} was imported, which is not in {tree}")
    return worker


def before(command: str, tree: Path) -> list[Row]:
    """Measure steps of both stages, each with the defaults of its code, against an older checkout in ``tree``."""
    from lbr_st.domains.tasks import domain_task

    batches, texts = 4, documents(base_tokenizer(), 256)
    chebi = domain_task("chebi").train_pairs.shuffle(seed=0).select(range(64 * batches))
    first = {"context": ["query: " + text for text in chebi["query"]], "target": list(chebi["document"])}
    second = {"query": texts[: 32 * batches], "document": texts[32 * batches :]}
    whole = {"max_target_tokens": None, "batch_tokens": None}
    return [
        against_before("learn", first, 64, "ChEBI name → definition", command, tree, pairs=7, **whole),
        against_before("represent", second, 32, f"{TOKENS}-token texts", command, tree, pairs=5),
    ]


def against_before(
    stage: str, texts: dict[str, list[str]], size: int, title: str, command: str, tree: Path, pairs: int, **config: Any
) -> Row:
    """Measure steps of a stage, on batches that recur in another order, in this code and in an older checkout's."""
    commit = subprocess.check_output(["git", "-C", str(tree), "rev-parse", "--short", "HEAD"], text=True).strip()
    cut = partial(base_tokenizer(), truncation=True, max_length=252)  # what a model reads by default, but for k tokens
    tokens = sum(len(ids) for column in texts.values() for ids in cut(column)["input_ids"])
    tokens = tokens * size // len(next(iter(texts.values())))
    row = Row(f"stage-{1 if stage == 'learn' else 2} useful tokens/s, CPU", f"commit {commit}", command, 1.5)
    model, peaks = {"base": BASE, "lora_rank": 16}, {}

    def step(worker: Worker) -> float:
        found = worker.ask()
        peaks[worker] = f"{found['gib']:.2f}"
        return tokens / found["seconds"]

    config |= {"batch_size": size}
    with (
        product(stage, model, texts, HERE.parent, steps=4, **config) as new,
        product(stage, model, texts, tree, steps=4, **config) as old,
    ):
        row.of_turns(partial(step, new), partial(step, old), pairs, middle="tokens/s")
        row.details["peak memory of the process, GiB"] = f"{peaks[new]} and {peaks[old]}"
        both = ["bfloat16 autocast" if one.ready["bfloat16"] else "float32" for one in (new, old)]
        row.details["arithmetic"] = " and ".join(both)
    row.note = (
        f"SmolLM2-135M, LoRA rank 16, {size} pairs, {title} ({tokens:,} tokens in the mean) a step, by the trainer of "
        "either commit with its own defaults, each in a process of its own; four steps in a turn, the first not timed."
    )
    return row


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


def base_tokenizer() -> Any:
    """Return the base's tokenizer."""
    from transformers import AutoTokenizer

    from lbr_st.model.bases import resolve_base

    return AutoTokenizer.from_pretrained(resolve_base(BASE), local_files_only=True)


def documents(tokenizer: Any, count: int, tokens: int = TOKENS) -> list[str]:
    """Return texts of so many tokens each, made of ChEBI's definitions."""
    from lbr_st.domains.tasks import domain_task

    made: list[str] = []
    stream: list[int] = []
    for text in domain_task("chebi").train_texts.shuffle(seed=0)["text"]:
        stream += tokenizer(" " + text, add_special_tokens=False)["input_ids"]  # as in one long text
        while len(stream) >= tokens and len(made) < count:
            document = tokenizer.decode(stream[:tokens])
            stream = stream[tokens:]
            # Decoded and tokenized again, a text may have a token more or less. Such short ones do not count.
            found = len(tokenizer(document, add_special_tokens=False)["input_ids"])
            if abs(found - tokens) <= tokens // 200:
                made.append(document)
        if len(made) == count:
            break
    return made


def serve() -> None:
    """Be a :class:`rows.Worker` that encodes texts for each line; the first names the model and has the texts."""
    from sentence_transformers import SentenceTransformer

    from lbr_st.compute import hold_on
    from lbr_st.model.load import mean_pooling

    setting = json.loads(sys.stdin.readline())
    torch.set_num_threads(os.cpu_count() or 1)
    hold_on()
    bare = setting["model"] == "bare"
    loaded = mean_pooling(setting["base"], 256) if bare else SentenceTransformer(setting["model"])
    answer(str(next(loaded.parameters()).dtype))
    for _ in sys.stdin:
        answer(seconds(lambda: loaded.encode(setting["texts"], batch_size=16, show_progress_bar=False)))


def encoding(command: str, base: str = BASE, count: int = 32, runs: int = 8, values: int = 11) -> list[Row]:
    """Measure a release against ``Transformer + Pooling("mean")`` on the same backbone.

    A value compares the best of several short runs, which other work on the machine seldom disturbs all.
    """
    import lbr_st
    from lbr_st.bottleneck.passes import backbone_of

    # Two models of different shapes in one process disturb each other: freed memory of one does not fit the other, and
    # fresh pages cost as much as the tokens that are compared.
    model = lbr_st.build_model(base, max_seq_length=256)
    setting = {"base": base, "texts": documents(backbone_of(model).tokenizer, count)}
    name = f"encode throughput of the released model, {TOKENS}-token documents"
    row = Row(name, 'the same backbone in Transformer + Pooling("mean")', command, 0.96)
    row.note = (
        f"SmolLM2-135M, float32, {count} documents, batches of 16, no prompt on either side; each model in a process "
        f"of its own, with as many threads as cores, in turns. A pair is the best of {runs} runs of each. Freed memory "
        f"is kept for both. The k = 4 tokens alone make {TOKENS}/{TOKENS + 4} = {TOKENS / (TOKENS + 4):.3f}. Weights "
        "do not matter to the speed, so the release is of the untrained base."
    )
    with tempfile.TemporaryDirectory() as folder:
        release = str(lbr_st.release(model, Path(folder) / "release"))
        del model
        with (
            Worker("speed.py", {**setting, "model": release}) as first,
            Worker("speed.py", {**setting, "model": "bare"}) as second,
        ):
            if {first.ready, second.ready} != {"torch.float32"}:
                raise RuntimeError(f"not alike: {first.ready} and {second.ready}")
            taken = in_turns(first.ask, second.ask, runs * values, warmups=2)
    released, bare = ([min(one[begin : begin + runs]) for begin in range(0, len(one), runs)] for one in taken)
    rate = " and ".join(f"{count / statistics.median(one):.1f}" for one in (released, bare))
    return [row.measured([b / a for a, b in zip(released, bare, strict=True)], **{"documents/s": rate})]


if __name__ == "__main__":
    serve()
