"""Stage 1: useful tokens a second against plain language modelling, and packed against padded rows.

Useful tokens are those of contexts and targets, with the end of each text. Bottleneck tokens and padding do not count.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from rows import HERE, Row, seconds

Example = tuple[list[int], list[int]]
"""Ids of a context and of a target, without any that a tokenizer adds."""


def chebi_examples(tokenizer: Any, count: int, longest: int) -> list[Example]:
    """Return name → definition pairs of ChEBI as ids."""
    from lbr_st.domains.tasks import domain_task

    pairs = domain_task("chebi").train_pairs.shuffle(seed=0).select(range(count))
    options = {"add_special_tokens": False, "truncation": True, "max_length": longest}
    contexts = tokenizer(["query: " + text for text in pairs["query"]], **options)["input_ids"]
    return list(zip(contexts, tokenizer(list(pairs["document"]), **options)["input_ids"], strict=True))


def examples_of_lengths(name: str, count: int, vocabulary: int, longest: int, first: int = 0) -> list[Example]:
    """Return random ids from ``first`` on, in the lengths of a real dataset, which ``lengths.json`` has."""
    draw = random.Random(0)
    lengths = json.loads((HERE / "lengths.json").read_text(encoding="utf-8"))[name]["lengths"]
    return [
        tuple([first + draw.randrange(vocabulary) for _ in range(min(size, longest))] for size in pair)  # type: ignore[misc]
        for pair in draw.sample(lengths, count)
    ]


def features(backbone: Any, examples: list[Example]) -> list[dict[str, torch.Tensor]]:
    """Return what a data collator would: two padded columns, with the tokens that the tokenizer adds."""
    from torch.nn.utils.rnn import pad_sequence

    columns = []
    for texts in zip(*examples, strict=True):
        ids = [torch.tensor([*text, *backbone.closing_ids]) for text in texts]
        columns.append(
            {
                "input_ids": pad_sequence(ids, True, backbone.tokenizer.pad_token_id).to(backbone.model.device),
                "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], True).to(backbone.model.device),
            }
        )
    return columns


def useful(examples: list[Example]) -> int:
    """Return how many tokens of text there are, with the end of each example."""
    return sum(len(context) + len(target) + 1 for context, target in examples)


def batches(examples: list[Example], size: int) -> Iterator[list[Example]]:
    """Yield batches without end."""
    while True:
        for begin in range(0, len(examples) - size + 1, size):
            yield examples[begin : begin + size]


class Training:
    """Steps of an optimiser on batches of ``size`` examples; each call is timed and returns useful tokens a second.

    Args:
        model: Whose weights are trained.
        loss: The loss of a batch.
        examples: What batches are cut from.
        size: Examples a batch.
        steps: Steps of a call.
        merged: Whether adapters are trained as our trainer does, in one product a layer; else in peft's own way.
    """

    def __init__(
        self, model: Any, loss: Callable[[list[Example]], torch.Tensor], examples: list[Example], size: int,
        steps: int = 1, *, merged: bool = True,
    ) -> None:  # fmt: skip
        from lbr_st.compute import use_bfloat16

        self.model, self.loss, self.steps, self.merged = model, loss, steps, merged
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=1e-5)
        self.batches, self.bfloat16 = batches(examples, size), use_bfloat16("auto", model.device)

    def __call__(self) -> float:
        """Run the steps."""
        chosen = [next(self.batches) for _ in range(self.steps)]

        def work() -> None:
            for batch in chosen:
                with torch.autocast(self.trained[0].device.type, torch.bfloat16, enabled=self.bfloat16):
                    loss = self.loss(batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
                self.optimiser.step()
                self.optimiser.zero_grad()

        from lbr_st.model.lora import merged_while_training

        with merged_while_training(self.model) if self.merged else nullcontext():
            return sum(useful(batch) for batch in chosen) / seconds(work)


def ours(model: Any, **options: Any) -> Callable[[list[Example]], torch.Tensor]:
    """Return the loss of stage 1 on examples."""
    from lbr_st.bottleneck.loss import IBGenerativeLoss
    from lbr_st.bottleneck.passes import backbone_of

    loss, backbone = IBGenerativeLoss(model, **options).train(), backbone_of(model)
    return lambda examples: torch.stack(list(loss(features(backbone, examples)).values())).sum()


def plain(model: Any, eos: int, row: int) -> Callable[[list[Example]], torch.Tensor]:
    """Return transformers' own causal language-modelling loss on the examples' tokens in full rows, as trainers pack.

    The texts follow one another with an end-of-text token between, cut into rows of ``row`` tokens, so that there is no
    padding at all. What does not fill a row makes a shorter batch of its own.
    """

    def loss(examples: list[Example]) -> torch.Tensor:
        stream = torch.tensor([token for c, t in examples for token in [*c, *t, eos]], device=model.device)
        whole = len(stream) // row * row
        parts = [stream[:whole].view(-1, row)] if whole else []
        parts += [stream[whole:][None]] if whole < len(stream) else []
        total = sum(part.numel() * model(input_ids=part, labels=part, use_cache=False).loss for part in parts)
        return total / len(stream)

    return loss


def against_plain(name: str, command: str, *, lora: bool, pairs: int) -> Row:
    """Measure stage 1 on ChEBI against plain causal language modelling of the same tokens."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    import lbr_st
    from lbr_st.bottleneck.passes import backbone_of
    from lbr_st.model.bases import resolve_base

    base, size = "smollm2-135m", 32
    model = lbr_st.build_model(base, lora_rank=32 if lora else None, max_seq_length=256).train()
    causal = AutoModelForCausalLM.from_pretrained(resolve_base(base), dtype=torch.float32).to(model.device).train()
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


def one_product_against_peft(command: str) -> Row:
    """Measure adapters added to the weight against peft's own layers, which add them to the output."""
    import lbr_st
    from lbr_st.bottleneck.passes import backbone_of

    size = 64
    model = lbr_st.build_model("smollm2-135m", lora_rank=16, max_seq_length=64).train()
    examples = chebi_examples(backbone_of(model).tokenizer, 2048, 24)
    first, second = (
        Training(model, ours(model, context_weight=0.0), examples, size, merged=merged) for merged in (True, False)
    )
    row = Row("stage-1 useful tokens/s, adapters in one product a layer, CPU", "peft's own LoRA layers", command)
    row.note = (
        f"SmolLM2-135M, LoRA rank 16, ChEBI name → definition cut at 24 tokens each, {size} pairs a step, no context "
        "loss, bfloat16 autocast."
    )
    return row.of_turns(first, second, 9)


def packed_against_padded(lengths: str, command: str, *, pairs: int, size: int, longest: int) -> Row:
    """Measure packed rows against padded ones under dense masks, at a dataset's lengths."""
    import lbr_st
    from lbr_st.bottleneck.passes import backbone_of

    model = lbr_st.build_model("smollm2-135m", lora_rank=32, max_seq_length=longest + 8).train()
    examples = examples_of_lengths(lengths, 512, min(backbone_of(model).bottleneck_ids), longest)
    first, second = (Training(model, ours(model, packed=packed), examples, size) for packed in (True, False))
    title = {"chebi": "ChEBI definitions", "medquad": "MedQuAD answers"}[lengths]
    row = Row(f"stage-1 useful tokens/s, packed, lengths of {title}", "padded rows under dense masks", command, 1.5)
    steps = [examples[i : i + size] for i in range(0, 512, size)]
    padded = sum(size * max(len(c) + len(t) + 4 for c, t in step) for step in steps)
    row.note = (
        f"SmolLM2-135M with LoRA, {size} pairs a step in random order, texts cut at {longest} tokens, random ids of "
        f"the dataset's lengths (lengths.json); {sum(map(useful, steps)) / padded:.0%} of a padded row is text."
    )
    return row.of_turns(first, second, pairs)
