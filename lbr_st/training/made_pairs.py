"""Pairs made from passages alone: queries that headings, crops, keywords and definitions give, filtered by BM25."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lbr_st.data.beir import RetrievalSet, stable_order
from lbr_st.data.csv_files import read_csv_records
from lbr_st.data.lines import check_text, kind_of, read_json_records, refuse_missing, write_rows
from lbr_st.data.passages import BELOW, sentence_ends
from lbr_st.data.texts import WRITTEN_WITHOUT_SPACES, digest, normalise
from lbr_st.errors import LBRError
from lbr_st.files import import_extra, notice

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = ("heading", "crop", "terms", "defines", "question")
FOUND_WITHIN = 10  # how far down BM25's ranking a made query may find its passage
MOST_PASSAGES, MOST_SEARCHED = 50_000, 10_000  # to make pairs of, and to search when a run is judged (our choice)
FEWEST, FEWEST_JUDGED = 8, 50  # passages to train on, and to hold some out
FEWEST_FILES, NEIGHBOURS = 5, 10  # files to hold out whole ones, and neighbouring passages in their place
FEWEST_WORDS, MOST_WORDS = 8, 30  # of a crop
QUOTED = 60  # letters of a quote that are looked for, since a long one may go on in the next passage

_CJK = WRITTEN_WITHOUT_SPACES.pattern.strip("[]")
_SPACED = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_TOKEN = rf"[{_CJK}]|[^\W{_CJK}]{{2,}}"  # bm25s's own, but that each Chinese or Japanese character is one
_NUMBER = re.compile(r"^(?i:chapter |section |part |appendix )?(?:\d+(?:\.\d+)*[.):]?|[IVXLC]+[.):]|[A-Z][.)])\s+")
_CALL = re.compile(r"(?:class |def |function )?([\w.]+)\(.*\)")
_TERM = r"[^\W_][\w'’/+-]*(?: [\w'’/+-]+){0,4}"
_DEFINED = re.compile(
    rf"\W{{0,4}}(?:(?:an?|the) )?(?P<term>{_TERM}?)\W{{0,2}}(?: \([^()]*\)|, (?:also|or) [^,]*,)?"
    r" (?:(?:is|are) (?:an?|the|any|one of|defined as)|refers? to|means|denotes) ",
    re.I,
)
_ENTRY = re.compile(
    rf"^(?:[ \t]*[-+•*][ \t])?[ \t]*(\*\*)?(?P<term>{_TERM})(?(1):?\*\*\W*[ \t]|:[ \t]+)(?P<rest>.+)", re.M
)
_SMALL = "also|and|another|as|at|both|but|by|for|from|here|in|not|of|on|one|or|so|to|with"
_NO_TERM = re.compile(
    rf"(?<!\S)(?:an?|any|are|each|he|her|his|how|i|if|is|its?|many|most|my|our|she|some|such|that|their|the|there|these|"
    rf"they|this|those|was|we|were|what|when|where|which|who|why|your?)(?!\S)|^(?:{_SMALL}) | (?:{_SMALL})$",
    re.I,
)


class Made(NamedTuple):
    """A made query, the rows of the passage it should find and of the one it is from, and the text to find."""

    query: str
    row: int
    source: int
    document: str | None = None  # None for the whole passage


class WordIndex:
    """BM25 of texts by English stems without stop words, as the evaluation has it; a Chinese character is a word."""

    def __init__(self, texts: Sequence[str]) -> None:
        from scipy.sparse import csc_array

        bm25s, stemmer = import_extra("bm25s"), import_extra("Stemmer").Stemmer("english")
        stem = {"stopwords": "en", "stemmer": stemmer, "token_pattern": _TOKEN}
        self._words = lambda those: bm25s.tokenize(list(those), return_ids=False, show_progress=False, **stem)
        words = self._words(texts)
        # In the order in which they come; texts may have no word at all.
        self.ids: dict[str, int] = {word: number for number, word in enumerate(dict.fromkeys([*chain(*words), ""]))}
        self._index = bm25s.BM25(k1=1.2, b=0.75, backend="numpy")
        with np.errstate(invalid="ignore"):  # texts without a word have no length
            self._index.index(([[self.ids[word] for word in row] for row in words], self.ids), show_progress=False)
        kept, shape = self._index.scores, (len(texts), len(self.ids))
        self.by_word = csc_array((kept["data"], kept["indices"], kept["indptr"]), shape=shape)
        self.by_text = self.by_word.tocsr()

    def ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the numbers of each text's stems, without those that no indexed text has."""
        return [[self.ids[word] for word in words if word in self.ids] for words in self._words(texts)]

    def top(self, queries: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ``n`` best texts of each query, the best first, and their scores."""
        n = min(n, self.by_word.shape[0])
        found = self._index.retrieve(self._words(queries), k=n, show_progress=False, backend_selection="numpy")
        return found.documents, found.scores

    def finds(self, queries: Sequence[str], texts: Sequence[int], n: int) -> np.ndarray:
        """Tell which queries find their own text among the first ``n``, even if it stood behind its equals."""
        best, scores = self.top(queries, n + 1)
        own = np.sum(scores * (best == np.asarray(texts)[:, None]), axis=1)
        return np.greater(own, scores[:, n] if scores.shape[1] > n else 0)


def make_pairs(
    passages: Dataset,
    kinds: Collection[str] | None = None,
    *,
    seed: int = 0,
    found_within: int = FOUND_WITHIN,
    written: Iterable[tuple[int, str]] = (),
    say: Callable[[str], None] = notice,
) -> Dataset:
    """Return pairs to train on, made of passages alone: of each kind one for a passage, and of ``defines`` two.

    ``heading``: a passage's headings, unless many sections have them. ``crop``: a sentence, or 8 to 30 words, for the
    rest of its passage. ``terms``: 2 to 6 words that tell a passage from the others. ``defines``: a term, for the
    sentence that defines it, and the definition, for another passage with the term. ``question``: a written query.

    Args:
        passages: What :func:`lbr_st.read_documents` returns.
        kinds: The kinds of pair; None for all.
        seed: Draws the crops, and how many words.
        found_within: A query is kept if its document is among BM25's first so many, of all documents of the kind.
        written: Rows of ``passages``, each with a query that a language model wrote for it.
        say: Told how many pairs of each kind were made and kept.

    Returns:
        ``query``, ``document`` and ``kind``; ``passage`` and ``source`` are the rows that the two are from.
    """
    if unknown := set(kinds or ()) - set(KINDS):
        raise LBRError(f"unknown kind of pair {min(unknown)!r}.", fix=f"Use {', '.join(KINDS)}.")
    rows = np.arange(len(passages))
    if len(rows) > MOST_PASSAGES:
        say(f"Pairs are made of {MOST_PASSAGES:,} passages, drawn by the seed from {len(rows):,}.")
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_PASSAGES, replace=False))
    place = {row: number for number, row in enumerate(rows.tolist())}
    texts, headings, files = (passages.select_columns([name])[rows][name] for name in ("text", "heading", "file"))
    index = WordIndex(texts)
    makers: dict[str, Callable[[np.random.Generator], Iterable[Made]]] = {
        "heading": lambda _: _headings(headings, files),
        "crop": lambda draw: _crops(texts, draw),
        "terms": lambda draw: _terms(texts, index, draw),
        "defines": lambda draw: _definitions(texts, headings, index, draw),
        "question": lambda _: (Made(query, place[row], place[row]) for row, query in written if row in place),
    }
    kept, known, counts = list[tuple[str, Made]](), set[tuple[int, int]](), list[str]()
    for number, kind in enumerate(KINDS):
        made = []
        for one in makers[kind](np.random.default_rng([seed, number])) if kinds is None or kind in kinds else ():
            query, document = normalise(one.query), normalise(one.document or texts[one.row])
            if len(query) > 1 and query != document and (key := (digest(query), digest(document))) not in known:
                known.add(key)
                made.append(one)
        found = [(kind, made[at]) for at in np.flatnonzero(_found(made, index, found_within))]
        kept += found
        counts += [f"{kind} {len(found):,} of {len(made):,}"] * bool(made)
    say(f"Made pairs that BM25 confirms: {', '.join(counts) or 'none'}.")
    if not kept:
        raise LBRError("no pair could be made of these passages.", fix="Give more text, or pairs of your own.")
    columns = ({"query": one.query, "document": one.document or texts[one.row], "kind": kind} for kind, one in kept)
    table = write_rows(columns, ("query", "document", "kind"))
    table = table.add_column("passage", rows[[one.row for _, one in kept]])
    return table.add_column("source", rows[[one.source for _, one in kept]])


def _found(made: Sequence[Made], passages: WordIndex, n: int) -> np.ndarray:
    """Tell which queries find their passage among all, or their part of a passage among all such parts."""
    found = np.zeros(len(made), bool)
    number = {part: at for at, part in enumerate(dict.fromkeys(one.document for one in made if one.document))}
    for index in (passages, WordIndex(list(number))) if number else (passages,):
        here = [at for at, one in enumerate(made) if (one.document is None) == (index is passages)]
        own = [number[made[at].document or ""] if index is not passages else made[at].row for at in here]
        found[here] = index.finds([made[at].query for at in here], own, n) if here else False
    return found


def _headings(headings: Sequence[str], files: Sequence[str]) -> Iterator[Made]:
    """Yield a passage's last heading, with the one above it if the last one stands at three places or more.

    One that stands below a tenth of all headings ("Introduction", "See also") says nothing.
    """
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for file, heading in set(zip(files, headings, strict=True)):
        path = heading.split(BELOW)
        for depth, title in enumerate(path if heading else ()):
            places[title].add((file, BELOW.join(path[:depth])))
    generic = max(3, len(set().union(*places.values())) / 10)
    for row, heading in enumerate(headings):
        path = heading.split(BELOW)
        if len(places[path[-1]]) < 3:
            yield Made(_NUMBER.sub("", path[-1], count=1), row, row)
        elif len(path) > 1 and all(len(places[title]) < generic for title in path[-2:]):
            yield Made(" ".join(_NUMBER.sub("", title, count=1) for title in path[-2:]), row, row)


def _crops(texts: Sequence[str], draw: np.random.Generator) -> Iterator[Made]:
    """Yield a sentence or a run of words of each passage; for all that is around it, or for the longer side alone."""
    for row, text in enumerate(texts):
        by_sentence, around, which, first = draw.random(4).tolist()
        words = [match.span() for match in _SPACED.finditer(text)]
        most = min(MOST_WORDS, len(words) - FEWEST_WORDS)
        if most < FEWEST_WORDS:
            continue
        spans = [*pairwise([0, *sentence_ends(text), len(text)])] if by_sentence < 0.5 else []
        spans = [span for span in spans if FEWEST_WORDS <= len(_SPACED.findall(text, *span)) <= most]
        size = FEWEST_WORDS + int(which * (most - FEWEST_WORDS + 1))
        begin = int(first * (len(words) - size + 1))
        start, end = spans[int(which * len(spans))] if spans else (words[begin][0], words[begin + size - 1][1])
        sides = text[:start].strip(), text[end:].strip()
        if sum(map(str.isalpha, text[start:end])) > (end - start) / 2:  # no row of a table's numbers
            rest = " ".join(sides).strip() if around < 0.5 else max(sides, key=len)
            yield Made(_line(text[start:end]), row, row, rest)


def _terms(texts: Sequence[str], index: WordIndex, draw: np.random.Generator) -> Iterator[Made]:
    """Yield the 2 to 6 words of the highest BM25 weight in each passage, in the order of the text.

    A word that no other passage has is mostly a name or a slip, and a number is no keyword.
    """
    words_of = re.compile(rf"[^\W\d_{_CJK}]{{3,}}").findall
    words = sorted({word for text in texts for word in words_of(text)})
    shared = np.diff(index.by_word.indptr) > 1
    stem = {word: ids[0] for word, ids in zip(words, index.ids_of(words), strict=True) if ids and shared[ids[0]]}
    for row, text in enumerate(texts):
        own = slice(*index.by_text.indptr[row : row + 2])
        weight = dict(zip(index.by_text.indices[own].tolist(), index.by_text.data[own].tolist(), strict=True))
        first: dict[int, str] = {}
        for word in words_of(text):
            if stem.get(word) in weight:
                first.setdefault(stem[word], word)
        best = sorted(first, key=lambda one: (-weight[one], one))[: draw.integers(2, 7)]
        if len(best) > 1:
            yield Made(" ".join(word for one, word in first.items() if one in best), row, row)


def _definitions(
    texts: Sequence[str], headings: Sequence[str], index: WordIndex, draw: np.random.Generator
) -> Iterator[Made]:
    """Yield a term that a passage defines, for the sentence; and the definition, for another passage with the term.

    What is defined at more than three places ("Note: …") is no term.
    """
    found: list[tuple[int, str, str | None, str]] = []
    for row, (text, heading) in enumerate(zip(texts, headings, strict=True)):
        sentences = [_line(text[start:end]) for start, end in pairwise([0, *sentence_ends(text), len(text)])]
        own: list[tuple[str, str | None, str]] = [
            *((match["term"], one, one[match.end() :]) for one in sentences if (match := _DEFINED.match(one))),
            *((match["term"], _line(match[0]), match["rest"]) for match in _ENTRY.finditer(text)),
        ]
        own = [one for one in own if not _NO_TERM.search(one[0])]
        if call := _CALL.fullmatch(heading.split(BELOW)[-1]):
            own.append((call[1], None, ""))
        if own:
            found.append((row, *own[draw.integers(len(own))]))
    times = Counter(term.casefold() for _, term, _, _ in found)
    for row, term, sentence, definition in found:
        if times[term.casefold()] > 3:
            continue
        yield Made(term, row, row, sentence)
        stems = [index.by_word.indptr[stem : stem + 2] for stem in index.ids_of([term])[0]]
        if stems and len(definition.split()) >= FEWEST_WORDS:
            having = reduce(np.intersect1d, [index.by_word.indices[slice(*ends)] for ends in stems]).tolist()
            others = [at for at in having if at != row and term.casefold() in texts[at].casefold()]
            if others:
                yield Made(definition, others[draw.integers(len(others))], row)


def _line(text: str) -> str:
    return " ".join(text.split())


def held_out_queries(
    pairs: Dataset,
    passages: Dataset,
    *,
    seed: int = 0,
    share: float = 0.1,
    most: int = 200,
    say: Callable[[str], None] = notice,
) -> tuple[Dataset, RetrievalSet | None]:
    """Return made pairs to train on, and at most ``most`` held-out queries; None for fewer than 50 passages.

    Held out are files with a ``share`` of the passages, or, of fewer than five files, runs of ten passages. No pair to
    train on asks for one of them or is from one. A passage that a crop asks for is searched without the crop. Fewer
    than 8 passages are an error.
    """
    if len(passages) < FEWEST:
        raise LBRError(f"{len(passages)} passages are too few to train on.", fix=f"Give text for {FEWEST} or more.")
    files: list[Any] = passages["file"][:]
    if len(set(files)) < FEWEST_FILES:
        files = [str(row // NEIGHBOURS) for row in range(len(files))]
    sizes, held, count = Counter(files), set[str](), 0
    for file in stable_order(sizes, seed):
        if count + sizes[file] <= max(share * len(files), min(sizes.values())):
            held.add(file)
            count += sizes[file]
    inside = [row for row, file in enumerate(files) if file in held]
    train = leave_out(pairs, inside)
    judging = np.flatnonzero(np.isin(pairs["passage"][:], inside) & np.isin(pairs["source"][:], inside))
    if len(passages) < FEWEST_JUDGED or not len(judging):
        say(f"Warning: too little text ({len(passages)} passages) to hold any out. The model is trained unjudged.")
        return pairs, None
    chosen: list[Any] = list(pairs.select(np.random.default_rng(seed).permutation(judging)[:most]))
    asked = [(pair["query"], [pair["passage"], pair["source"]]) for pair in chosen]
    cut = {pair["passage"]: pair["document"] for pair in chosen if pair["kind"] == "crop"}
    return train, _asked("made-held-out", asked, passages, cut)


def leave_out(pairs: Dataset, rows: Sequence[int]) -> Dataset:
    """Return the made pairs that neither ask for one of these passages, given by their rows, nor are from one."""
    return pairs.select(np.flatnonzero(~(np.isin(pairs["passage"][:], rows) | np.isin(pairs["source"][:], rows))))


def judged_by(queries: str | Path, passages: Dataset) -> RetrievalSet:
    """Return a person's own queries as a test: a table of ``query`` and ``file`` or ``quote``.

    All passages of a file answer, or those (of it) that hold the beginning of the quote, by letters and digits. The id
    of a passage is "p" and its row. A query that nothing answers is an error.
    """
    path = Path(queries)
    read = read_csv_records if kind_of(path) in (".csv", ".tsv") else read_json_records
    spelt, files = list(map(normalise, passages["text"])), passages["file"][:]
    asked: list[tuple[str, list[int]]] = []
    for where, row in read(path):
        refuse_missing(["query"], row, where)
        check_text(row["query"], where, "the query")
        file, quote = row.get("file") or "", normalise(row.get("quote") or "")[:QUOTED]
        if not file and not quote:
            raise LBRError("neither a file nor a quote answers this query.", where=where, fix="Name one of the two.")
        there = [not file or file in (name, name.rpartition("/")[2]) for name in files]
        found = [at for at, text in enumerate(spelt) if there[at] and quote in text]
        if not found:
            fix = "Check the file's name, or quote a whole sentence as it is written."
            raise LBRError(f"no passage answers {row['query']!r}.", where=where, fix=fix)
        asked.append((row["query"], found))
    return _asked("own-queries", asked, passages, {})


def _asked(name: str, asked: list[tuple[str, list[int]]], passages: Dataset, cut: Mapping[int, str]) -> RetrievalSet:
    """Return a test of queries and the passages that answer them, with as many other passages as are searched."""
    ids: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for query, rows in asked:
        qrels.setdefault(ids.setdefault(query, f"q{len(ids)}"), {}).update((f"p{row}", 1) for row in rows)
    corpus = {f"p{row}": cut.get(row, text) for row, text in enumerate(passages["text"])}
    whole = RetrievalSet(name, corpus, {key: query for query, key in ids.items()}, qrels)
    return whole if len(corpus) <= MOST_SEARCHED else whole.slice(len(ids), MOST_SEARCHED)
