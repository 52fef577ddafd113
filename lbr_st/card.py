"""The model card of a release: Sentence Transformers' own card, filled, with what it has no place for behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
from sentence_transformers.base.model_card import generate_model_card
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from lbr_st.evaluation.result import TaskScore
from lbr_st.evaluation.table import format_table
from lbr_st.recipe import Recipe


@dataclass
class CardInfo:
    """What a card says beyond what Sentence Transformers can see in the model.

    Args:
        name: Name of the model.
        recipe: The run that made it; None if unknown.
        results: A label and a result for each system, this model last; on one retrieval set.
        licence: SPDX id of the weights' licence; None if unknown.
        data: Training data, one line each with its licence.
        language: Language of the training text.
        examples: A query and a few texts for the usage example.
    """

    name: str
    recipe: Recipe | None = None
    results: Sequence[tuple[str, TaskScore]] = ()
    licence: str | None = None
    data: Sequence[str] = ()
    language: str | None = None
    examples: Sequence[str] = field(default_factory=tuple)


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
    if info.results:
        result = info.results[-1][1]
        metrics = {"ndcg_at_10": result.ndcg_at_10, "recall_at_10": result.recall_at_10}
        data.set_evaluation_metrics(_Retrieval(result), {k: v for k, v in metrics.items() if v is not None})
    card = generate_model_card(model)
    (folder / "README.md").write_text(f"{card.rstrip()}\n\n{_sections(info)}", encoding="utf-8")


def _sections(info: CardInfo) -> str:
    parts = [_HOW]
    if info.results:
        parts.append(f"## Results\n\n{format_table(info.results)}")
    if info.data:
        parts.append("## Data and licences\n\n" + "\n".join(f"- {line}" for line in info.data))
    if info.recipe is not None:
        recipe = yaml.safe_dump(asdict(info.recipe), sort_keys=False, allow_unicode=True).rstrip()
        parts.append(f"## Recipe\n\n`lbr-st train --config recipe.yaml` with this file:\n\n```yaml\n{recipe}\n```")
    parts.append(_LIMITS)
    return "\n\n".join(parts) + "\n"


_HOW = """## How it was trained

With [LBR, Learn Before Represent](https://arxiv.org/abs/2601.11124), by lbr-st: first *learn* (generative learning
through an information bottleneck: the model compresses a text into a few bottleneck tokens and generates from these
alone, its attention causal), then *represent* (contrastive refinement of the last bottleneck token's state). The
bottleneck tokens are appended by the tokenizer itself, so plain Sentence Transformers runs this model; use
`encode_query` and `encode_document`, which add the prompts that training used."""

_LIMITS = """## Limits

Trained for one domain and one language; expect less elsewhere. Texts longer than the maximum sequence length are cut.
The results above, if any, are on queries of one form; measure on your own before you rely on it. The model can carry
over errors and biases of its base and its training text."""
