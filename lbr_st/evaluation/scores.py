"""What an evaluation found: scores in memory, as JSON records on disk, and as Markdown tables."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lbr_st.errors import LBRError
from lbr_st.evaluation.statistics import mean_interval
from lbr_st.files import write_whole

FORMAT = 1
"""Of the record on disk; a record of another format is not read."""

DECIDES = "ndcg_at_10"
"""The measure that comparisons and intervals are about."""

RECORDS = "per_query"
"""The folder of records, laid out like MTEB's ``results``."""

_PARTIAL = {"truncate_dim", "harness"}
"""Experiments that are not the whole model as MTEB scores it."""

_FIX = "Run `lbr-st evaluate MODEL` first."


@dataclass(frozen=True)
class Part:
    """One split and subset (a language, say) of a retrieval task.

    ``ndcg_at_10`` has a number from 0 to 1 for each query id. ``first`` has what was ranked first, ``relevant`` a most
    relevant document: query id → document id and its text, cut.
    """

    split: str
    subset: str  # "default" where there is one only
    num_documents: int  # in the corpus
    ndcg_at_10: dict[str, float] = field(repr=False)
    recall_at_10: float | None = None  # mean recall among the first 10 documents
    recall_at_100: float | None = None
    queries: dict[str, str] = field(default_factory=dict, repr=False)  # query id → its text, cut
    first: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    relevant: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> tuple[str, str]:
        """Split and subset."""
        return self.split, self.subset


@dataclass(frozen=True)
class TaskScore:
    """The scores of one system on one task.

    ``asked`` and ``experiment`` are part of a score's identity. ``folder`` and ``arithmetic`` are empty in older
    records. The latter is the precision that ``"auto"`` took, and why: seconds of a product in float32 and in bfloat16,
    lowest cosine of a probe text's embeddings in the two.
    """

    model: str  # the system's name, org/model
    revision: str  # what tells this model from another of the same name
    digest: str  # 40 hexadecimal digits over what decides the system's rankings
    task: str
    task_type: str  # MTEB's word for it, such as "Retrieval" or "Clustering"
    metric: str  # the task's main measure
    score: float  # its value: the mean over splits and subsets, as MTEB's leaderboard takes it
    dataset_revision: str  # the commit of a hub dataset, or 40 hexadecimal digits over a local set's content
    asked: list[str] = field(default_factory=list, repr=False)  # "split/subset" of all that the score is a mean of
    parts: tuple[Part, ...] = field(default=(), repr=False)  # empty for tasks that are not retrieval
    experiment: dict[str, Any] = field(default_factory=dict)  # how it was run, when not as it is: {"truncate_dim": 64}
    embed_dim: int | None = None  # numbers in an embedding; None for systems without
    seconds: float = 0.0  # wall time of the run that made the scores (not of reading them back)
    date: str = ""  # when it ended, ISO 8601 in UTC; "" for an unfinished run
    command: str = ""  # the command line of that run
    versions: dict[str, str] = field(default_factory=dict, repr=False)  # package → version in that run
    description: str = ""  # what the task is, such as which slice of a larger one
    folder: str = ""  # hash_of_path of the model's folder; "" for other models
    arithmetic: dict[str, Any] = field(default_factory=dict, repr=False)  # empty if the precision was given

    @property
    def name(self) -> str:
        """The system's name with how it was run, as tables and plots show it."""
        how = ", ".join(f"{key}={value}" for key, value in sorted(self.experiment.items()))
        return f"{self.model} ({how})" if how else self.model

    @property
    def ndcg_at_10(self) -> float | None:
        """Mean nDCG@10: over the queries of each part, then over the parts; None if the task has no queries."""
        return _mean([sum(part.ndcg_at_10.values()) / len(part.ndcg_at_10) for part in self.parts])

    @property
    def recall_at_10(self) -> float | None:
        """Mean recall among the first 10 documents, or None."""
        return _mean([part.recall_at_10 for part in self.parts])

    @property
    def recall_at_100(self) -> float | None:
        """The same among the first 100."""
        return _mean([part.recall_at_100 for part in self.parts])

    @property
    def per_query(self) -> dict[str, float]:
        """Query id → nDCG@10; with several parts the ids are ``split/subset/id``."""
        if len(self.parts) == 1:
            return self.parts[0].ndcg_at_10
        return {f"{p.split}/{p.subset}/{query}": score for p in self.parts for query, score in p.ndcg_at_10.items()}

    @property
    def num_queries(self) -> int:
        """Queries that were scored."""
        return sum(len(part.ndcg_at_10) for part in self.parts)

    @property
    def num_documents(self) -> int:
        """Documents searched, over all parts."""
        return sum(part.num_documents for part in self.parts)

    def confidence_interval(self) -> tuple[float, float] | None:
        """Return :func:`mean_interval` of :attr:`ndcg_at_10`, or None for a task without queries."""
        return mean_interval([list(part.ndcg_at_10.values()) for part in self.parts]) if self.parts else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def score_from_dict(content: Mapping[str, Any]) -> TaskScore:
    """Return the score that :func:`write_record` or :func:`write_results` wrote as this JSON object.

    Raises:
        KeyError, TypeError, ValueError: It is something else.
    """
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}")
    values = {key: value for key, value in content.items() if key in TaskScore.__dataclass_fields__}
    parts = []
    for part in values.pop("parts"):
        if not part["ndcg_at_10"]:
            raise ValueError("a part without queries")
        pairs = {key: {query: tuple(item) for query, item in part[key].items()} for key in ("first", "relevant")}
        parts.append(Part(**{**part, **pairs}))
    return TaskScore(**values, parts=tuple(parts))


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_record(path: Path, score: TaskScore) -> None:
    """Write a score with everything that :func:`read_record` needs."""
    write_json(path, {"format": FORMAT, **asdict(score)})


def read_record(path: Path) -> TaskScore | None:
    """Return the score in a file, or None if the file is absent, cut off, or another program's."""
    try:
        return score_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def mteb_folder(output: str | Path) -> Path:
    """Return the folder in whose ``results`` MTEB files scores: the output, or the one above if that is ``results``."""
    output = Path(output)  # in which older versions made another folder of that name, which stays in use
    return output.parent if output.name == "results" and not (output / "results").is_dir() else output


def read_records(folder: str | Path) -> list[TaskScore]:
    """Return every finished score below an output folder, by system and task.

    Raises:
        LBRError: There is none.
    """
    paths = sorted((Path(folder) / RECORDS).rglob("*.json"))
    scores = [score for path in paths if (score := read_record(path)) is not None and score.date]
    if not scores:
        raise LBRError("there are no results here.", where=str(folder), fix=_FIX)
    return sorted(scores, key=lambda score: (score.name, score.task, score.date))


def latest(scores: Iterable[TaskScore]) -> list[TaskScore]:
    """Keep, for each system (name and experiment) and task, the score that was made last."""
    kept = {(score.name, score.task): score for score in sorted(scores, key=lambda score: score.date)}
    return list(kept.values())


def hash_of_path(path: str) -> str:
    """Return 12 hexadecimal digits that stand for a place on this machine, without telling it."""
    return hashlib.sha256(bytes(Path(path).resolve())).hexdigest()[:12]


def find_system(scores: Iterable[TaskScore], name: str) -> list[TaskScore]:
    """Return the scores of the system that ``name`` means, the latest of each task.

    ``name`` is the folder that was evaluated, or a system's name as tables show it, or ``org/model``, or ``model``.
    ``@revision`` or its first digits may follow.

    Raises:
        LBRError: No system has this name, or several do.
    """
    scores, folder = list(scores), hash_of_path(name)
    if own := [score for score in scores if score.folder == folder]:
        name = max(own, key=lambda score: score.date).model
        scores = [score for score in scores if score.folder in ("", folder)]
    wanted, _, revision = name.partition("@")
    found = [score for score in scores if score.revision.startswith(revision)]
    if "/" in wanted or Path(wanted).exists():  # what is known to be of another folder is not meant by a path
        found = [score for score in found if not score.folder or wanted in (score.model, score.name)]
    called = (lambda s: s.model == wanted, lambda s: s.model.partition("/")[2] == Path(wanted).name)
    # The model as it is comes first, then whole embeddings in other arithmetic, then anything of this name.
    ways = [[score for score in found if score.name == wanted]]
    ways += [[s for s in found if same(s) and not s.experiment] for same in called]
    ways += [[s for s in found if same(s) and not s.experiment.keys() & _PARTIAL] for same in called]
    ways += [[s for s in found if any(same(s) for same in called)]]
    matches = next(filter(None, ways), [])
    several = len({score.folder for score in matches} - {""}) > 1
    names = sorted({f"{s.name}@{s.revision[:8]}" if several else s.name for s in matches})
    if len(names) > 1:
        raise LBRError(f"{name!r} may mean {' or '.join(names)}.", fix="Give one of these names in full.")
    if not matches:
        known = ", ".join(sorted({score.name for score in scores}))
        raise LBRError(f"there are no results of {name!r}; there are: {known}.", fix="Run `lbr-st evaluate` on it.")
    return latest(matches)


def write_results(path: Path | str, results: Sequence[tuple[str, TaskScore]]) -> None:
    """Write labelled results as a JSON list: each one's label, scores, 95% interval and per-query nDCG@10."""
    rows = [
        {
            "label": label,
            **{key: getattr(result, key) for key in ("ndcg_at_10", "recall_at_10", "recall_at_100")},
            "confidence_interval_95": result.confidence_interval(),
            "format": FORMAT,
            **asdict(result),
        }
        for label, result in results
    ]
    write_json(Path(path), rows)


def format_table(results: Sequence[tuple[str, TaskScore]]) -> str:
    """Return a Markdown table of labelled systems on one retrieval set, below a caption that names the data.

    Raises:
        LBRError: There are no results, or they are not all on the same data.
    """
    if not results:
        raise LBRError("there are no results to show.", fix=_FIX)
    first = results[0][1]
    for label, result in results:
        if (result.task, result.dataset_revision) != (first.task, first.dataset_revision):
            ours, theirs = (f"{one.task} ({one.dataset_revision[:8]})" for one in (first, result))
            fix = "Only scores on the same data can share a table; make one for each."
            raise LBRError(f"{label!r} was scored on {theirs}, the first row on {ours}.", fix=fix)
    columns = {"System": "---", "nDCG@10": "---:", "95% interval": ":---:", "Recall@10": "---:", "Recall@100": "---:"}
    rows = []
    for label, result in results:
        means = (result.ndcg_at_10, result.recall_at_10, result.recall_at_100)
        ndcg, *recall = ["–" if value is None else f"{value:.4f}" for value in means]
        rows.append((plain(label), ndcg, _interval(result), *recall, _size(result)))
    return "\n".join([_caption(first), "", *markdown_table({**columns, "Queries × documents": "---:"}, rows)])


def format_tasks(results: Sequence[TaskScore], notes: Mapping[str, str] | None = None) -> str:
    """Return a Markdown table of one system's tasks, each by its main measure, with notes by the task's name.

    Raises:
        LBRError: There are no results.
    """
    if not results:
        raise LBRError("there are no results to show.", fix=_FIX)
    columns = {"Task": "---", "Measure": "---", "Score": "---:", "95% interval": ":---:"}
    columns |= {"Queries × documents": "---:", "Data revision": "---", "Note": "---"}
    rows = []
    for result in results:
        # MTEB rounds its own score to five digits; a second rounding could be off by one. The interval is of nDCG@10.
        exact = result.ndcg_at_10 if result.metric == DECIDES else None
        cells = [
            plain(result.task),
            "nDCG@10" if result.metric == DECIDES else result.metric,
            f"{result.score if exact is None else exact:.4f}",
            _interval(result) if result.metric == DECIDES else "–",
            _size(result) if result.parts else "–",
            result.dataset_revision[:8],
            plain((notes or {}).get(result.task, "")),
        ]
        rows.append(cells)
    return "\n".join(markdown_table(columns, rows))


def plain(text: str) -> str:
    """Return text on one line in which Markdown and HTML see no mark-up."""
    # A lone underscore inside a word, or a "<" before a number, marks nothing up and is easier to read as it is.
    marks = r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=[#\w])"
    return re.sub(marks, r"\\\g<0>", " ".join(text.split()))


def markdown_table(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table: column → alignment (such as ``"---:"``), and cells by row."""
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(columns.values())}|"]
    return lines + [f"| {' | '.join(cells)} |" for cells in rows]


def _caption(result: TaskScore) -> str:
    about = f": {' '.join(result.description.split()).rstrip('.')}" if result.description else ""
    part = re.fullmatch(r"(.+)-q\d+-d\d+", result.task)  # RetrievalSet.slice gives such names
    slice_note = f" A slice of {part[1]}: not comparable with scores on the whole of it." if part else ""
    revision = result.dataset_revision[:8]
    return f"{result.task}{about}.{slice_note} Data revision {revision}; intervals are bootstraps over queries."


def _interval(result: TaskScore) -> str:
    interval = result.confidence_interval()
    return "–" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _size(result: TaskScore) -> str:
    return f"{result.num_queries:,} × {result.num_documents:,}"
