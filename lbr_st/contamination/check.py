"""The check itself: training columns streamed past the evaluation's texts."""

from __future__ import annotations

import time
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from lbr_st.contamination.evaluation import EvaluationTexts, Parameters
from lbr_st.contamination.report import KINDS, PARTS, ContaminationReport, Count, Sample, cut
from lbr_st.contamination.search import matching_rows
from lbr_st.data import RetrievalSet
from lbr_st.errors import LBRError


class Evaluation:
    """Retrieval sets made ready once, to check several training tables against.

    Args:
        against: The retrieval sets.
        threshold: The least Jaccard similarity of a near duplicate, above 0 and at most 1.
        shingle_words: Words in a shingle.
        num_perm: Numbers in a MinHash signature.
        seed: Of the MinHash permutations.

    Raises:
        LBRError: There is no set, or an argument is out of range.
    """

    def __init__(
        self,
        against: Sequence[RetrievalSet],
        *,
        threshold: float = 0.8,
        shingle_words: int = 3,
        num_perm: int = 128,
        seed: int = 0,
    ) -> None:
        self.parameters = Parameters(threshold, shingle_words, num_perm, seed)
        self.texts = EvaluationTexts(against, self.parameters)
        self.against = [
            {
                "name": one.name,
                "revision": one.revision,
                "queries": len(one.queries),
                "documents": len(one.corpus),
            }
            for one in against
        ]

    def check(
        self, columns: Mapping[str, Sequence[str]], *, training: str = "the training data", samples: int = 3
    ) -> ContaminationReport:
        """Return which rows of a training table repeat what; see :func:`check_contamination`.

        Columns of a dataset are read batch by batch, large ones in several processes.
        """
        if not columns:
            raise LBRError("there is no training text to check.", where=training, fix="Give at least one column.")
        start = time.perf_counter()
        rows: defaultdict[tuple[str, str, str], array[int]] = defaultdict(lambda: array("q"))
        items: defaultdict[tuple[str, str, str], set[int]] = defaultdict(set)
        shown: defaultdict[tuple[str, str, str], list[Sample]] = defaultdict(list)
        for column, texts in columns.items():
            for row, hits in matching_rows(self.texts, texts):
                for number, (kind, similarity) in sorted(hits.items()):
                    item = self.texts.texts[number]
                    for part, (name, identifier) in item.parts.items():
                        key = (column, part, kind)
                        items[key].add(number)
                        if rows[key] and rows[key][-1] == row:
                            continue  # one sample a row: a row like many evaluation texts would fill the list
                        rows[key].append(row)
                        if len(shown[key]) < samples:
                            both = cut(texts[row]), cut(item.text)
                            shown[key].append(
                                Sample(column, row, both[0], part, kind, similarity, name, identifier, both[1])
                            )
        keys = [(c, p, k) for c in columns for p in PARTS for k in KINDS if (c, p, k) in rows]
        counts = [Count(*key, rows=len(rows[key]), items=len(items[key])) for key in keys]
        harmful = {c.column: set[int]() for c in counts if c.harmful}
        for count in counts:
            if count.harmful:
                harmful[count.column].update(rows[count.column, count.part, count.kind])
        hit = {part: len(set[int]().union(*(items[key] for key in keys if key[1] == part))) for part in PARTS}
        return ContaminationReport(
            training=training,
            columns={column: len(texts) for column, texts in columns.items()},
            against=self.against,
            totals=self.texts.totals(),
            hit=hit,
            counts=counts,
            harmful={column: sorted(found) for column, found in harmful.items()},
            samples=[sample for key in keys for sample in shown[key]],
            parameters=asdict(self.parameters),
            seconds=round(time.perf_counter() - start, 2),
        )


def check_contamination(
    columns: Mapping[str, Sequence[str]],
    against: Sequence[RetrievalSet],
    *,
    threshold: float = 0.8,
    shingle_words: int = 3,
    num_perm: int = 128,
    seed: int = 0,
    training: str = "the training data",
    samples: int = 3,
) -> ContaminationReport:
    """Return which training rows repeat evaluation texts.

    A training text can repeat an evaluation text in three ways, the first that holds counting: ``exact`` (the same
    letters and digits, in whatever case, spacing and punctuation), ``contains`` (a query of eight words or more, or a
    judged document of five or more, stands in it), ``near`` (the Jaccard similarity of their sets of shingles, runs of
    words, is at least ``threshold``). MinHash only proposes near duplicates, the sets themselves decide: none is
    reported wrongly, and of those right at the threshold about one in a thousand is missed.

    *Harmful* are rows that repeat a query or a judged document (relevance above 0). Rows equal to other documents of
    the corpus are legitimate, for whoever indexes a corpus may also train on it: they are counted, no more. Nor is it
    harm when a long text merely mentions a query of a few words.

    What is ours by choice: evaluation texts of up to three words are compared whole only, those of four to eight by
    their set of words, longer ones by runs of ``shingle_words`` (3: one word exchanged in the middle is noticed from
    29 words on; shorter texts, such as definitions, differ by a word because they define different things). Not
    looked for: parts of an evaluation document in a shorter training text, paraphrases and translations.

    Args:
        columns: Column → its texts, of one table.
        against: The retrieval sets.
        threshold: The least Jaccard similarity of a near duplicate, above 0 and at most 1.
        shingle_words: Words in a shingle.
        num_perm: Numbers in a MinHash signature; fewer are faster and give more candidates to check.
        seed: Of the MinHash permutations; the same seed gives the same report.
        training: What to call the training data in the report.
        samples: Samples for each count.

    Raises:
        LBRError: There is no column or no set, or an argument is out of range.
    """
    start = time.perf_counter()
    evaluation = Evaluation(against, threshold=threshold, shingle_words=shingle_words, num_perm=num_perm, seed=seed)
    report = evaluation.check(columns, training=training, samples=samples)
    return replace(report, seconds=round(time.perf_counter() - start, 2))
