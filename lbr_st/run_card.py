"""What a run's model card says, gathered from its recipe and its prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lbr_st.bases import BASES
from lbr_st.card import CardInfo
from lbr_st.data.origins import known_overlaps
from lbr_st.domains.tasks import DOMAIN_TASKS
from lbr_st.evaluation.suites import SUITES
from lbr_st.recipe import Recipe
from lbr_st.run_data import RunData


def run_card(recipe: Recipe, data: RunData, results: Path | None, provenance: dict[str, Any]) -> CardInfo:
    """Return what the card of a run's model says.

    Args:
        recipe: The run.
        data: What it trained on.
        results: Its ``results.json``; None if it was not scored.
        provenance: What :func:`lbr_st.provenance.provenance` said of it.
    """
    base = BASES.get(recipe.model.base)
    examples = list(data.pairs[0].values())[:2] if data.pairs is not None else []
    sources = [recipe.data.source, *recipe.data.also, *filter(None, (recipe.data.texts, recipe.data.pairs))]
    tasks = [task for suite in SUITES.values() if recipe.data.source in suite.local for task in suite.hub_tasks]
    return CardInfo(
        recipe.name,
        recipe=recipe,
        results=results,
        licence=base.licence.lower() if base else None,
        data=data.licences,
        contamination=[report.to_markdown(samples=False) for report in data.contamination],
        overlaps=known_overlaps(sources, tasks),
        language="en" if recipe.data.source in DOMAIN_TASKS else None,
        examples=examples,
        provenance=provenance,
    )
