"""Which training rows repeat evaluation texts, exactly or nearly."""

from __future__ import annotations

import sys
import time
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING, Any
from zlib import crc32

from lbr_st.data.beir import RetrievalSet
from lbr_st.data.columns import negative_columns
from lbr_st.data.contamination_report import KINDS, PARTS, ContaminationReport, Count, Sample, cut
from lbr_st.data.lines import map_rows, write_rows
from lbr_st.data.texts import digest, jaccard, plain, shingles
from lbr_st.errors import LBRError
from lbr_st.files import notice

if TYPE_CHECKING:
    from datasets import Dataset
    from datasketch import MinHash

SHORT = 9
"""An evaluation text below this many words is compared by its set of words, whatever their order (our choice). With
eight words or fewer, one word exchanged leaves at most 7 of 9 alike, below 0.8. So another question of the same form is
no duplicate; one word added or left out is, from four words on."""
FEWEST = 4
"""A text of fewer words, which most names are, can only match whole: "acid salt" is no "salt acid"."""
LEAST_CONTAINED = {"judged": 5, "query": 8}
"""An evaluation text of fewer words is not looked for inside others (our choice): a long text may mention a name, as
textbooks do. The longest of 1,500 ChEBI names asked for has six words."""
ANCHOR_WORDS = 3
"""A text is looked for inside another where this many of its words stand there with the same spaces."""
SHINGLE_WORDS = 3
"""Words in a shingle. One word exchanged in the middle is noticed from 29 words on (our choice): shorter texts, such as
definitions, differ by a word because they define different things."""
NUM_PERM = 128
"""Numbers in a MinHash signature. Fewer are faster and give more candidates to check."""
REMEMBERED = 200_000
"""Training texts whose matches are kept: stage 1's texts are often the documents of stage 2's pairs."""
FOUND = 0.999
"""Probability with which a pair right at the threshold becomes a candidate; pairs more alike are likelier still."""

Hits = Mapping[int, tuple[str, float]]
"""Number of an evaluation text → how a training text repeats it, and the similarity."""
NOTHING: Hits = {}
HIT = {"row": "int64", "number": "int64", "kind": "string", "similarity": "float64"}
"""The columns of a table of hits."""

_searching: ContaminationCheck | None = None
"""The check that the forked processes of a search inherit; an argument would be copied to each."""


@dataclass
class EvaluationText:
    """An evaluation text, in all the parts it plays: part → the name of a set and the id it has there."""

    text: str
    plain: str
    parts: dict[str, tuple[str, str]] = field(default_factory=dict)


class ContaminationCheck:
    """Finds training rows that repeat evaluation texts; made once, it checks several training tables.

    A training text can repeat an evaluation text in three ways, of which the first that holds counts:

    - ``exact``: the same letters and digits, in whatever case, spacing and punctuation.
    - ``contains``: a query of eight words or more, or a judged document of five or more, stands in it.
    - ``near``: the Jaccard similarity of their sets of shingles (runs of words) is at least ``threshold``. MinHash only
      proposes, the sets decide. None is reported wrongly; right at the threshold about one in a thousand is missed.

    Rows that repeat a query or a judged document (relevance above 0 in any of the sets) are *harmful*. Rows equal to
    other documents of the corpus are only counted, since whoever indexes a corpus may also train on it.

    It does not find parts of an evaluation document in a shorter training text, paraphrases or translations.

    Args:
        against: The retrieval sets.
        threshold: The least Jaccard similarity of a near duplicate, above 0 and at most 1.

    Raises:
        LBRError: There is no set, or the threshold is out of range.
    """

    def __init__(self, against: Sequence[RetrievalSet], *, threshold: float = 0.8) -> None:
        if not against:
            raise LBRError("there is no evaluation set to check against.", fix="Give at least one.")
        if not 0 < threshold <= 1:
            raise LBRError(f"threshold={threshold}.", fix="Give a number above 0 and at most 1.")
        self.parameters = {"threshold": threshold, "shingle_words": SHINGLE_WORDS, "num_perm": NUM_PERM}
        self.against = [
            {"name": one.name, "revision": one.revision, "queries": len(one.queries), "documents": len(one.corpus)}
            for one in against
        ]
        self.texts: list[EvaluationText] = []
        self._number_of: dict[int, int] = {}
        self._known: dict[int, Hits] = {}
        for one in against:
            self._add(one)
        self._anchors: defaultdict[str, list[int]] = defaultdict(list)
        short: list[int] = []
        long: list[int] = []
        for number, text in enumerate(self.texts):
            if "judged" in text.parts:
                text.parts.pop("corpus", None)  # judged in one set is judged in all
            words = text.plain.count(" ") + 1
            if any(words >= LEAST_CONTAINED.get(part, sys.maxsize) for part in text.parts):
                # The shingle of most letters, since long words are rare.
                anchor = max(shingles(text.plain, ANCHOR_WORDS), key=lambda shingle: (len(shingle), shingle))
                self._anchors[anchor].append(number)
            if words >= FEWEST:
                (short if words < SHORT else long).append(number)
        # A text of many words is no near duplicate of one below SHORT, whichever they are: not worth signing.
        most = int((SHORT - 1) / threshold)
        self._near = [
            (numbers, NearIndex([self.texts[number].plain for number in numbers], size, threshold), upto)
            for numbers, size, upto in ((short, 1, most), (long, SHINGLE_WORDS, sys.maxsize))
        ]

    def check(
        self, columns: Mapping[str, Sequence[str]], *, training: str = "the training data", samples: int = 3
    ) -> ContaminationReport:
        """Return which rows of a training table repeat what.

        Args:
            columns: Column → its texts. Columns of a dataset are read batch by batch, large ones in several processes.
            training: What to call the training data in the report.
            samples: Samples for each count.

        Raises:
            LBRError: There is no column.
        """
        if not columns:
            raise LBRError("there is no training text to check.", where=training, fix="Give at least one column.")
        start = time.perf_counter()
        rows: defaultdict[tuple[str, str, str], array[int]] = defaultdict(lambda: array("q"))
        items: defaultdict[tuple[str, str, str], set[int]] = defaultdict(set)
        shown: defaultdict[tuple[str, str, str], list[Sample]] = defaultdict(list)
        for column, texts in columns.items():
            for row, number, kind, similarity in self._search(texts):
                item = self.texts[number]
                for part, (name, identifier) in item.parts.items():
                    key = (column, part, kind)
                    items[key].add(number)
                    if rows[key] and rows[key][-1] == row:
                        continue  # one sample a row: a row like many evaluation texts would fill the list
                    rows[key].append(row)
                    if len(shown[key]) < samples:
                        text, other = cut(texts[row]), cut(item.text)
                        shown[key].append(Sample(column, row, text, part, kind, similarity, name, identifier, other))
        keys = [(c, p, k) for c in columns for p in PARTS for k in KINDS if (c, p, k) in rows]
        counts = [Count(*key, rows=len(rows[key]), items=len(items[key])) for key in keys]
        harmful: defaultdict[str, set[int]] = defaultdict(set)
        for count, key in zip(counts, keys, strict=True):
            if count.harmful:
                harmful[count.column].update(rows[key])
        return ContaminationReport(
            training=training,
            columns={column: len(texts) for column, texts in columns.items()},
            against=self.against,
            totals={part: sum(part in text.parts for text in self.texts) for part in PARTS},
            hit={part: len(set[int]().union(*(items[key] for key in keys if key[1] == part))) for part in PARTS},
            counts=counts,
            harmful={column: sorted(found) for column, found in harmful.items()},
            samples=[sample for key in keys for sample in shown[key]],
            parameters=self.parameters,
            seconds=round(time.perf_counter() - start, 2),
        )

    def matches(self, texts: Sequence[str]) -> list[Hits]:
        """Return for each training text of a batch which evaluation texts it repeats."""
        if len(self._known) > REMEMBERED:
            self._known.clear()
        keys = [digest(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        self._known.update(zip(new, self._look_up(list(new.values())), strict=True))
        return [self._known[key] for key in keys]

    def _add(self, one: RetrievalSet) -> None:
        judged = {key for qrel in one.qrels.values() for key, relevance in qrel.items() if relevance > 0}
        documents = (("judged" if key in judged else "corpus", key, text) for key, text in one.corpus.items())
        for part, key, text in (*(("query", *query) for query in one.queries.items()), *documents):
            if not (words := plain(text)):
                continue  # without a letter or digit it would be the same as any other such text
            number = self._number_of.setdefault(_letters(words), len(self.texts))
            if number == len(self.texts):
                self.texts.append(EvaluationText(text, words))
            self.texts[number].parts.setdefault(part, (one.name, key))

    def _search(self, texts: Sequence[str]) -> Iterator[tuple[int, int, str, float]]:
        """Yield row, number of the evaluation text, kind and similarity of each hit, row by row."""
        from datasets import Column, Dataset

        global _searching
        asked: Any = texts if isinstance(texts, Column) else Dataset.from_dict({"text": list(texts)})["text"]
        rows, column = asked.source, asked.column_name
        options: dict[str, Any] = {"input_columns": [column], "desc": "Checking for evaluation texts"}
        _searching = self
        try:
            found = map_rows(rows.select_columns([column]), _hits, HIT, with_indices=True, **options)
        finally:
            _searching = None
        for hit in found:
            yield hit["row"], hit["number"], hit["kind"], hit["similarity"]

    def _look_up(self, texts: list[str]) -> list[Hits]:
        plains = [plain(text) for text in texts]
        found: list[dict[int, tuple[str, float]]] = [{} for _ in texts]
        for hits, text in zip(found, plains, strict=True):
            hits.update((number, ("contains", 1.0)) for number in self._contained(text))
            if (same := self._number_of.get(_letters(text))) is not None:
                hits[same] = ("exact", 1.0)
        for numbers, index, most in self._near:
            asked = [row for row, text in enumerate(plains) if FEWEST <= text.count(" ") + 1 <= most]
            for row, number, similarity in index.matches([plains[row] for row in asked]):
                found[asked[row]].setdefault(numbers[number], ("near", similarity))
        return [hits or NOTHING for hits in found]

    def _contained(self, words: str) -> Iterator[int]:
        """Yield the protected texts that stand in a training text, from the start of a word to the end of one."""
        anchors = shingles(words, ANCHOR_WORDS) & self._anchors.keys()
        if not anchors:
            return
        letters = words.replace(" ", "")
        ends = {0, *accumulate(map(len, words.split()))}
        for number in (number for anchor in anchors for number in self._anchors[anchor]):
            wanted = self.texts[number].plain.replace(" ", "")
            at = letters.find(wanted)
            while at >= 0 and not (at in ends and at + len(wanted) in ends):
                at = letters.find(wanted, at + 1)
            if at >= 0:
                yield number


def without_negatives(pairs: Dataset, check: ContaminationCheck) -> Dataset:
    """Return pairs without those of their hard negatives that repeat evaluation texts."""
    names = negative_columns(pairs.column_names)
    found = check.check({name: pairs[name] for name in names}).harmful
    if not found:
        return pairs
    notice(f"Left out {sum(map(len, found.values())):,} hard negatives that repeat evaluation texts.")
    harmful = {(name, number) for name in found for number in found[name]}

    def without() -> Iterator[dict[str, str]]:
        for number, row in enumerate(pairs):
            stay = [row[name] for name in names if row[name] and (name, number) not in harmful]
            yield {**row, **dict(zip_longest(names, stay, fillvalue=""))}

    return write_rows(without(), pairs.column_names)


class NearIndex:
    """Texts, as :func:`~lbr_st.data.texts.plain` gives them, found by the Jaccard similarity of sets of shingles.

    A shingle has ``size`` words; a text with fewer words is like no other.
    """

    def __init__(self, texts: Sequence[str], size: int, threshold: float) -> None:
        import numpy as np
        from datasketch import MinHashLSH

        self.size, self.threshold = size, threshold
        # Asked by the threshold, MinHashLSH would take (9, 13) at 0.8, and find 40% of the pairs right at it.
        rows = rows_per_band(threshold)
        self._lsh = MinHashLSH(num_perm=NUM_PERM, params=(NUM_PERM // rows, rows))
        self._shingles = lru_cache(maxsize=4096)(lambda number: shingles(texts[number], size))
        signed = _sign([shingles(text, size) for text in texts])
        for number, one in enumerate(signed):
            self._lsh.insert(number, one, check_duplication=False)
        self._signatures = np.array([one.hashvalues for one in signed])
        # An estimate from 128 numbers is off by 0.035 (one standard deviation) at 0.8. What is off by five of them is
        # not worth comparing, and that is most candidates.
        self._least = threshold - 5 * (threshold * (1 - threshold) / NUM_PERM) ** 0.5

    def matches(self, texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
        """Yield ``(number in texts, number in the index, similarity)`` for each pair at or above the threshold."""
        import numpy as np

        sets = [shingles(text, self.size) for text in texts]
        for row, (one, signed) in enumerate(zip(sets, _sign(sets), strict=True)):
            candidates = np.array(self._lsh.query(signed) if one else [], dtype=np.int64)
            if not len(candidates):
                continue
            alike = (self._signatures[candidates] == signed.hashvalues).mean(axis=1)
            for number in candidates[alike >= self._least].tolist():
                similarity = jaccard(one, self._shingles(number))
                if similarity >= self.threshold:
                    yield row, number, similarity


def rows_per_band(threshold: float) -> int:
    """Return how many signature numbers make a band: the most with which a pair at the threshold is still found."""
    for rows in range(NUM_PERM // 2, 1, -1):  # MinHashLSH wants two bands
        if 1 - (1 - threshold**rows) ** (NUM_PERM // rows) >= FOUND:
            return rows
    return 1


def _sign(sets: list[set[str]]) -> list[MinHash]:
    from datasketch import MinHash

    encoded = ([shingle.encode() for shingle in one] for one in sets)
    return MinHash.bulk(encoded, num_perm=NUM_PERM, seed=0, hashfunc=crc32, scheme="affine32")


def _letters(words: str) -> int:
    return digest(words.replace(" ", ""))


def _hits(texts: list[str], rows: list[int]) -> dict[str, list[Any]]:
    assert _searching is not None  # there are several processes only where they fork
    found = zip(rows, _searching.matches(texts), strict=True)
    flat = [(row, number, *how) for row, hits in found for number, how in sorted(hits.items())]
    return {name: [hit[place] for hit in flat] for place, name in enumerate(HIT)}
