"""Reading what a recipe's data section names: pairs, texts, documents and the queries that are held out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import AutoTokenizer

from lbr_st.data.beir import RetrievalSet, read_beir
from lbr_st.data.documents import is_documents, pair_tables
from lbr_st.data.hold_out import hold_out
from lbr_st.data.lines import joined, kind_of
from lbr_st.data.pairs import RECORDS
from lbr_st.data.passages import read_documents
from lbr_st.data.sources import READABLE, read_pairs, read_texts, short_name
from lbr_st.domains.archives import archive_named, archive_tables
from lbr_st.domains.definitions import DomainTask
from lbr_st.domains.tasks import DOMAIN_TASKS, domain_task
from lbr_st.errors import LBRError
from lbr_st.files import cache_dir, notice
from lbr_st.model.bases import licence_of, resolve_base
from lbr_st.model.embedder import embedder_prompts, prompts_for
from lbr_st.model.tokens import with_bottleneck_tokens
from lbr_st.recipe import DATA_PLACES, DataConfig, Recipe, refuse_no_data, refuse_unpublished
from lbr_st.training.forms import Part, balanced, made_of
from lbr_st.training.made_pairs import KINDS, held_out_queries, judged_by, leave_out, make_pairs
from lbr_st.training.questions import questions

EXAMPLES = 5
"""Of a person's own queries, which show a writer their form."""
OWN = "the source's own"
"""The form of the pairs that a source brings."""
FEWEST_PAIRS_TO_HOLD_OUT = 50
"""With fewer pairs a held-out set would say nothing, and nothing is evaluated."""


class Sources(NamedTuple):
    """What a recipe's data section names, without pairs that are held out for evaluation.

    ``parts`` are tables, each with its kind (pairs, texts or records) and its source's name. ``others`` are the queries
    of the tasks in ``data.also``, which are neither evaluated nor trained on.
    """

    parts: list[tuple[str, str, Dataset]]
    test: RetrievalSet | None
    dev: RetrievalSet | None
    others: list[RetrievalSet]
    licences: list[str]
    notes: list[str]
    made: str = ""


def read_sources(recipe: Recipe) -> Sources:
    """Read what a recipe's data section names; tables are on disk, sets of queries in memory.

    Raises:
        LBRError: A source is not named, missing, empty or malformed, or a domain task is given other pairs.
    """
    refuse_unpublished(recipe, DATA_PLACES)
    refuse_no_data(recipe)
    config = recipe.data
    own, also = short_name(config.source), [domain_task(name) for name in config.also]
    notes: list[str] = []

    def say(what: str) -> None:
        notice(what)
        notes.append(what)

    made = ""
    if from_documents(recipe):
        pairs, texts, test, dev, made = _read_documents(recipe, say)
        records, licences = None, [own]
    elif config.source not in DOMAIN_TASKS:
        pairs, texts, test, dev = _read_own(recipe, say)
        records, licences = None, [_with_licence(name) for name in (config.source, config.pairs) if name]
    elif config.pairs:
        fix = "Leave it out, or name the pairs as data.source and more text as data.texts."
        raise LBRError(f"{config.source} brings its own pairs.", where="data.pairs", fix=fix)
    else:
        task = domain_task(config.source)
        pairs, texts, records = _task_pairs(task, config.synonyms), task.train_texts, task.records
        test, dev, licences = task.test, task.dev, [task.licence]
    more, names = [task.train_texts for task in also], [*config.also]
    licences += [task.licence for task in also]
    if config.texts:
        more.append(texts_of(config, config.texts, say))
        names.append(short_name(config.texts))
        licences.append(_with_licence(config.texts))
    if pairs is not None:
        pairs = joined([pairs, *(_task_pairs(task, config.synonyms) for task in also)])
    found = [("texts", own, texts), ("texts", ", ".join(names), joined(more))]
    if RECORDS in learn_kinds(recipe):
        found += [(RECORDS, own, records), (RECORDS, ", ".join(config.also), joined(task.records for task in also))]
    forms = [] if pairs is None else [Part(OWN, short_name(config.pairs or config.source), pairs)]
    for name in config.archives:
        by_form, passages = archive_tables(name)
        found.append(("texts", name, passages))
        licences.append(archive_named(name).attribution)
        forms += [Part(form, f"{name} ({form})", rows) for form, rows in by_form.items() if pairs is not None]
    if config.make_pairs and pairs is not None and not from_documents(recipe):
        plain = [rows for kind, _, rows in found if kind == "texts" and rows is not None]
        forms += made_of(plain, config.make_pairs, recipe.seed, say)
    if len(forms) > 1:
        forms = balanced(forms, recipe.seed, say)
    found = [*(("pairs", part.source, part.rows) for part in forms), *found]
    parts = [(kind, name, rows) for kind, name, rows in found if rows is not None]
    others = [one for task in also for one in (task.test, task.dev)]
    return Sources(parts, test, dev, others, list(dict.fromkeys(licences)), notes, made)


def _with_licence(source: str) -> str:
    licence = licence_of(source, dataset=True)
    return short_name(source) + (f": licence {licence}" if licence else "")


def texts_of(config: DataConfig, source: str | Path, say: Callable[[str], None] = notice) -> Dataset:
    """Return the texts of a source, read as a recipe says."""
    return read_texts(source, column=config.text_column, split=config.split, bad_rows=config.bad_rows, say=say)


def pairs_of(config: DataConfig, source: str | Path, say: Callable[[str], None] = notice) -> Dataset:
    """Return the pairs of a source, read as a recipe says."""
    names = ("query_column", "document_column", "split", "min_score", "bad_rows")
    return read_pairs(source, say=say, **{name: getattr(config, name) for name in names})


def _read_own(
    recipe: Recipe, say: Callable[[str], None]
) -> tuple[Dataset | None, Dataset | None, RetrievalSet | None, RetrievalSet | None]:
    """Return pairs, texts, test and dev of the user's own sources; no texts where they are the pairs' documents."""
    config = recipe.data
    needed = needs_pairs(recipe)
    texts = texts_of(config, config.source, say) if config.pairs or not needed else None
    if not needed:
        return None, texts, None, None
    source = config.pairs or config.source
    pairs = pairs_of(config, source, say)
    test, dev = (
        read_beir(source, split) if (Path(source) / "qrels" / f"{split}.tsv").is_file() else None
        for split in ("test", "dev")
    )
    if dev is None and recipe.represent.stop and len(pairs) >= FEWEST_PAIRS_TO_HOLD_OUT:
        pairs, dev = hold_out(pairs, name=Path(source).stem, seed=1)
    if test is None and recipe.evaluate.enabled:
        if len(pairs) >= FEWEST_PAIRS_TO_HOLD_OUT:
            pairs, test = hold_out(pairs, name=Path(source).stem, seed=0)
        if test is None:
            why = f"they are fewer than {FEWEST_PAIRS_TO_HOLD_OUT}, or most share a query or a document"
            say(f"{short_name(source)}: no pairs can be held out, so nothing is evaluated: {why}.")
    return pairs, texts, test, dev if config.split != "dev" else None


def _read_documents(
    recipe: Recipe, say: Callable[[str], None]
) -> tuple[Dataset | None, Dataset, RetrievalSet | None, RetrievalSet | None, str]:
    """Return pairs made of documents, their passages, test, dev, and what was made; tables of pairs add theirs."""
    config, model = recipe.data, recipe.model
    replace = embedder_prompts(model.base) is not None
    base = AutoTokenizer.from_pretrained(resolve_base(model.base))
    tokenizer = with_bottleneck_tokens(base, model.num_bottleneck_tokens, replace=replace)
    prompt = prompts_for(model.base, model.query_prompt, model.document_prompt)["document"]
    found = passages_of(config.source, tokenizer, prompt, model.max_seq_length, say=say, text_column=config.text_column)
    texts = found.select_columns(["text"])
    if not needs_pairs(recipe):
        return None, texts, None, None, ""
    kinds: list[Any] = config.make_pairs or [kind for kind in KINDS if kind != "question" or config.writer]
    own = judged_by(config.queries, found) if config.queries else None
    written: list[tuple[int, str]] = []
    if "question" in kinds and config.writer:
        folder, form = cache_dir() / "questions", [*own.queries.values()][:EXAMPLES] if own else []
        written = questions(found, config.writer, folder=folder, examples=form, seed=recipe.seed, say=say)
    pairs = make_pairs(found, kinds, written=written, seed=recipe.seed, say=say)
    test = dev = None
    if own is not None:
        pairs = leave_out(pairs, [int(key[1:]) for judged in own.qrels.values() for key in judged])
    if recipe.represent.stop or recipe.evaluate.split == "dev":
        pairs, dev = held_out_queries(pairs, found, seed=recipe.seed + 1, say=say)
    if own is None and recipe.evaluate.enabled:
        pairs, test = held_out_queries(pairs, found, seed=recipe.seed, say=say)
    tables = [pairs_of(config, path, say) for path in pair_tables(config.source)]
    parts = [f"p{row}" for row in pairs["passage"]]
    table = joined([pairs.select_columns(["query", "document"]).add_column("passage", parts), *tables])
    return table, texts, own or test, dev, "pairs" if own else "queries"


def passages_of(source: str | Path, tokenizer: Any, prompt: str, max_seq_length: int, **options: Any) -> Dataset:
    """Return the passages of documents that a model reads whole, after its prompt and with what its tokenizer adds."""

    def num_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    room = max(1, max_seq_length - len(tokenizer(prompt)["input_ids"]))
    return read_documents(source, num_tokens=num_tokens, max_tokens=room, **options)


def from_documents(recipe: Recipe) -> bool:
    """Tell whether a recipe's pairs are made of the documents that it names; stage 1 alone reads a table as it is."""
    data = recipe.data
    if data.source in DOMAIN_TASKS or data.pairs or not is_documents(data.source):
        return False
    return recipe.represent.enabled or kind_of(Path(data.source)) not in READABLE


def learn_kinds(recipe: Recipe) -> list[str]:
    """Return the kinds of pairs for stage 1: those that the recipe names, or those that fit its data."""
    if recipe.learn.pairs is not None:
        return [*recipe.learn.pairs]
    return ["reconstruct", "continue"] if from_documents(recipe) else ["natural", "reverse", "reconstruct"]


def needs_pairs(recipe: Recipe) -> bool:
    """Tell whether a recipe trains on query-document pairs, in either stage."""
    return recipe.represent.enabled or bool({"natural", "reverse"} & set(learn_kinds(recipe)))


def _task_pairs(task: DomainTask, synonyms: bool) -> Dataset | None:
    return joined([task.train_pairs, task.synonym_pairs if synonyms else None])
