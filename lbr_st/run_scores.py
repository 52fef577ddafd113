"""The table of a training run: baselines, the stages' models and the released one, on the held-out queries."""

from __future__ import annotations

from pathlib import Path

from sentence_transformers import SentenceTransformer

from lbr_st.data import RetrievalSet
from lbr_st.evaluation import TaskScore, evaluate_bm25, evaluate_retrieval
from lbr_st.load_by_name import load_by_name, mean_pooling
from lbr_st.recipe import Recipe
from lbr_st.registry import notice


class RunScores:
    """The rows of a training run's table, filled as it goes; nothing is scored without a held-out set.

    Args:
        recipe: The run.
        data: The held-out queries.
        folder: Where scores go.
        command: The command line to note with the scores.
    """

    def __init__(self, recipe: Recipe, data: RetrievalSet | None, folder: Path, command: str = "") -> None:
        self.recipe, self.data, self.folder, self.command = recipe, data, folder, command
        self.rows: list[tuple[str, TaskScore]] = []

    def bm25(self) -> None:
        """Add BM25."""
        if self.data is not None:
            self.rows.append(("BM25", evaluate_bm25(self.data, self.folder, self.command)))

    def base(self, name: str) -> None:
        """Add the untrained base."""
        if self.data is not None:
            loaded = mean_pooling(name, self.recipe.model.max_seq_length)
            self.model("untrained base, mean pooling", loaded, "base")

    def beside(self) -> None:
        """Add the general embedding model that the recipe names, if it names one."""
        other = self.recipe.evaluate.beside
        if self.data is not None and other is not None:
            loaded, name, _ = load_by_name(other, self.recipe.evaluate.precision)
            self.model(name.removeprefix("local/"), loaded, "beside")

    def model(self, label: str, model: SentenceTransformer, part: str) -> None:
        """Add a model.

        Args:
            label: What the table calls it.
            model: The model.
            part: What it is in the run; its scores are filed under ``<recipe name>/<part>``.
        """
        if self.data is None:
            return
        notice(f"Scoring: {label} ({len(self.data.queries):,} queries, {len(self.data.corpus):,} documents).")
        score = evaluate_retrieval(
            model,
            self.data,
            name=f"{self.recipe.name}/{part}",
            output_folder=self.folder,
            batch_size=self.recipe.evaluate.batch_size,
            precision=self.recipe.evaluate.precision,
            show_progress_bar=True,
            command=self.command,
        )
        self.rows.append((label, score))
