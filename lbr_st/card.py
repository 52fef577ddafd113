"""The model card of a release: Sentence Transformers' own card, filled, with what it has no place for behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
from sentence_transformers.base.model_card import generate_model_card
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from lbr_st.errors import LBRError
from lbr_st.evaluation import TaskScore, find_system
from lbr_st.evaluation.section import read_results, replace_section, results_section
from lbr_st.files import explain_disk_errors, write_whole
from lbr_st.recipe import Recipe


@dataclass
class CardInfo:
    """What a card says beyond what Sentence Transformers can see in the model.

    Args:
        name: Name of the model.
        recipe: The run that made it; None if unknown.
        results: The run's ``results.json``, this model last, or the folder of ``lbr-st evaluate``; None: none yet.
        licence: SPDX id of the weights' licence; None if unknown.
        data: Training data, one line each with its licence.
        contamination: What the check of the training data against the evaluation data found, a paragraph each.
        overlaps: What evaluation and training data are known to share by their origin, a sentence each.
        language: Language of the training text.
        examples: A query and a few texts for the usage example.
        provenance: What :func:`lbr_st.provenance.provenance` says, kept beside the card; None if unknown.
        note: A paragraph on how this copy of the model came about; None for none.
    """

    name: str
    recipe: Recipe | None = None
    results: Path | None = None
    licence: str | None = None
    data: Sequence[str] = ()
    contamination: Sequence[str] = ()
    overlaps: Sequence[str] = ()
    language: str | None = None
    examples: Sequence[str] = field(default_factory=tuple)
    provenance: dict[str, Any] | None = None
    note: str | None = None


class _Retrieval(SentenceEvaluator):
    """Names a retrieval result for Sentence Transformers' metrics table."""

    def __init__(self, result: TaskScore) -> None:
        super().__init__()
        self.name = result.task
        self.primary_metric = "ndcg_at_10"

    @property
    def description(self) -> str:
        return "Information Retrieval"


def write_card(model: SentenceTransformer, folder: Path, info: CardInfo) -> None:
    """Write ``README.md`` into a released model's folder.

    Args:
        model: The released model, in stock form.
        folder: Where it lies.
        info: What to say.
    """
    data = SentenceTransformerModelCardData(
        model_name=info.name,
        license=info.licence,
        language=info.language,
        task_name="retrieval in its domain: matching queries with documents",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "dense", "lbr", "lbr-st"],
        local_files_only=True,
    )
    model.model_card_data = data
    data.register_model(model)
    data.ir_model = True
    if info.examples:
        data.usage_examples = list(info.examples)
    rows = read_results(info.results) if info.results else []
    if rows:
        result = rows[-1][1]
        metrics = {"ndcg_at_10": result.ndcg_at_10, "recall_at_10": result.recall_at_10}
        data.set_evaluation_metrics(_Retrieval(result), {k: v for k, v in metrics.items() if v is not None})
    card = generate_model_card(model)
    sections = _sections(info, results_section(rows) if rows else "")
    (folder / "README.md").write_text(f"{card.rstrip()}\n\n{sections}", encoding="utf-8")


def refresh_card(path: Path, results: Path, *, systems: Sequence[str] = ()) -> None:
    """Write the results section of a card anew from result files; the rest of it stays.

    Args:
        path: The card, or the model's folder with its ``README.md``.
        results: See :func:`lbr_st.evaluation.section.read_results`.
        systems: Names of the systems to show, in this order; empty for all.

    Raises:
        LBRError: There is no card, or there are no results, or none of a system.
    """
    card = path / "README.md" if path.is_dir() else path
    if not card.is_file():
        raise LBRError("there is no card here.", where=str(card), fix="Name a model's folder or a Markdown file.")
    rows = read_results(results)
    if systems:
        rows = [(score.name, score) for name in systems for score in find_system([s for _, s in rows], name)]
    text = replace_section(card.read_text(encoding="utf-8"), results_section(rows))
    with explain_disk_errors(card):
        write_whole(card, text)


def _sections(info: CardInfo, results: str) -> str:
    parts = [_how(info.recipe), *([info.note] if info.note else []), *([results] if results else [])]
    if info.data:
        parts.append("## Data and licences\n\n" + "\n".join(f"- {line}" for line in info.data))
    if info.contamination or info.overlaps:
        overlaps = "\n".join(f"- {line}" for line in info.overlaps)
        parts.append("\n\n".join(["## Training data against evaluation data", *info.contamination, overlaps]).rstrip())
    if info.recipe is not None:
        recipe = yaml.safe_dump(asdict(info.recipe), sort_keys=False, allow_unicode=True).rstrip()
        parts.append(f"## Recipe\n\n`lbr-st train --config recipe.yaml` with this file:\n\n```yaml\n{recipe}\n```")
    parts.append(_LIMITS)
    return "\n\n".join(parts) + "\n"


def _how(recipe: Recipe | None) -> str:
    """Say how the model was trained; a baseline does not claim what it left out."""
    recipe = recipe or Recipe()
    tokens = recipe.model.num_bottleneck_tokens > 0
    stages = []
    if recipe.learn.enabled and recipe.learn.bottleneck == "none":
        stages.append("*learn* (plain causal language modelling on the domain's text, without a bottleneck)")
    elif recipe.learn.enabled:
        stages.append(
            "*learn* (generative learning through an information bottleneck: the model compresses a text into a few "
            "bottleneck tokens and generates from these alone, its attention causal)"
        )
    if recipe.represent.enabled:
        token = "last appended token's" if tokens else "end-of-text token's"
        stages.append(f"*represent* (contrastive training of the {token} state)")
    method = "With [LBR, Learn Before Represent](https://arxiv.org/abs/2601.11124), by lbr-st"
    learns = recipe.learn.enabled and recipe.learn.bottleneck != "none"
    if not (learns and recipe.represent.enabled):
        method = "A part or a baseline of [LBR, Learn Before Represent](https://arxiv.org/abs/2601.11124), by lbr-st"
    what = "appended tokens come from" if tokens else "end-of-text token comes from"
    text = (
        f"## How it was trained\n\n{method}: {', then '.join(stages)}. The {what} the tokenizer itself, so "
        "plain Sentence Transformers runs this model; use `encode_query` and `encode_document`, which add the prompts "
        "that training used."
    )
    if recipe.model.quantize:
        text += (
            " Adapters were trained on the base in 4 bits (QLoRA). The weights here are the base's own, in full "
            "precision, with these adapters merged into them."
        )
    return text


_LIMITS = """## Limits

Trained for one domain and one language; expect less elsewhere. Texts longer than the maximum sequence length are cut.
Control tokens written in a text are read as plain text. The tokenizer refuses half a character (a lone surrogate).
The results above, if any, are on queries of one form; measure on your own before you rely on it. The model can carry
over errors and biases of its base and its training text."""
