"""The evaluation side of the check: every text once, with what it is there for, ready to be looked up."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import accumulate

from lbr_st.contamination.near import NearIndex
from lbr_st.contamination.texts import plain, shingles
from lbr_st.data import RetrievalSet
from lbr_st.errors import LBRError

SHORT = 9
"""An evaluation text below this many words is compared by its set of words, whatever their order (our choice). With
eight words or fewer, one word exchanged leaves at most 7 of 9 alike, below 0.8, so that another question of the same
form is no duplicate; one word added or left out is, from four words on."""
FEWEST = 4
"""A text of fewer words, which most names are, can only match whole: "acid salt" is no "salt acid"."""
LEAST_CONTAINED = {"judged": 5, "query": 8}
"""An evaluation text of fewer words is not looked for inside others (our choice): a name that a long text mentions is
no contamination, as no textbook is. The longest of 1,500 ChEBI names asked for has six words."""
ANCHOR_WORDS = 3
"""A text is looked for inside another where this many of its words stand there with the same spaces; elsewhere in it,
spaces and punctuation may differ."""
REMEMBERED = 200_000
"""Training texts whose matches are kept, by a digest: stage 1's texts are often the documents of stage 2's pairs."""


Hits = Mapping[int, tuple[str, float]]
"""Number of an evaluation text → how a training text repeats it, and the similarity."""
NOTHING: Hits = {}


@dataclass(frozen=True)
class Parameters:
    """What counts as a near duplicate.

    Args:
        threshold: The least Jaccard similarity of two sets of shingles, above 0 and at most 1.
        shingle_words: Words in a shingle.
        num_perm: Numbers in a MinHash signature; fewer are faster and give more candidates to check.
        seed: Of the MinHash permutations.

    Raises:
        LBRError: One is out of range.
    """

    threshold: float = 0.8
    shingle_words: int = 3
    num_perm: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or self.shingle_words < 1 or self.num_perm < 2 or not 0 <= self.seed < 2**32:
            raise LBRError(
                f"no check can be made with {', '.join(f'{key}={value}' for key, value in asdict(self).items())}.",
                fix="threshold must be in (0, 1], shingle_words 1 or more, num_perm 2 or more, seed 0 or more.",
            )


@dataclass
class EvaluationText:
    """An evaluation text, in all the parts it plays: part → the name of a set and the id it has there."""

    text: str
    plain: str
    parts: dict[str, tuple[str, str]] = field(default_factory=dict)


class EvaluationTexts:
    """The texts of retrieval sets, each once however it is spelt, and how to find those that a training text repeats.

    A document judged relevant in any set is ``judged`` in all, the others are ``corpus``.

    Args:
        against: The retrieval sets.
        parameters: What counts as a near duplicate.

    Raises:
        LBRError: There is no set.
    """

    def __init__(self, against: Sequence[RetrievalSet], parameters: Parameters) -> None:
        if not against:
            raise LBRError("there is no evaluation set to check against.", fix="Give at least one.")
        self.parameters = parameters
        self._number_of: dict[bytes, int] = {}
        self.texts: list[EvaluationText] = []
        self._known: dict[bytes, Hits] = {}
        for one in against:
            self._add(one)
        for text in self.texts:
            if "judged" in text.parts:
                text.parts.pop("corpus", None)
        self._anchors: defaultdict[str, list[int]] = defaultdict(list)
        words = [text.plain.count(" ") + 1 for text in self.texts]
        for number, text in enumerate(self.texts):
            if words[number] >= min(
                (LEAST_CONTAINED[part] for part in text.parts if part != "corpus"), default=sys.maxsize
            ):
                self._anchors[_anchor(text.plain)].append(number)
        short = [number for number, count in enumerate(words) if FEWEST <= count < SHORT]
        long = [number for number, count in enumerate(words) if count >= SHORT]
        # A text of many words is no near duplicate of one below SHORT, whichever they are: not worth signing.
        most = (SHORT - 1) / parameters.threshold
        self._near = [
            (short, self._index(short, 1), range(FEWEST, int(most) + 1)),
            (long, self._index(long, parameters.shingle_words), range(FEWEST, sys.maxsize)),
        ]

    def totals(self) -> dict[str, int]:
        """Return how many different texts there are of each part."""
        return {part: sum(part in text.parts for text in self.texts) for part in ("query", "judged", "corpus")}

    def matches(self, texts: Sequence[str]) -> list[Hits]:
        """Return for each training text which evaluation texts it repeats.

        The first of these that holds: ``exact``, the same letters and digits; ``contains``, a query or judged document
        of :data:`LEAST_CONTAINED` words or more stands in the training text; ``near``.

        Args:
            texts: A batch of some hundreds of texts as they are.
        """
        if len(self._known) > REMEMBERED:
            self._known.clear()
        keys = [_digest(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        self._known.update(zip(new, self._look_up(list(new.values())), strict=True))
        return [self._known[key] for key in keys]

    def _look_up(self, texts: list[str]) -> list[Hits]:
        plains = [plain(text) for text in texts]
        found: list[dict[int, tuple[str, float]]] = [{} for _ in texts]
        for hits, text in zip(found, plains, strict=True):
            number = self._number_of.get(_digest(text.replace(" ", "")))
            if number is not None:
                hits[number] = ("exact", 1.0)
            hits.update((other, ("contains", 1.0)) for other in self._contained(text) if other != number)
        for numbers, index, lengths in self._near:
            asked = [row for row, text in enumerate(plains) if text.count(" ") + 1 in lengths]
            for row, number, similarity in index.matches([plains[row] for row in asked]):
                found[asked[row]].setdefault(numbers[number], ("near", similarity))
        return [hits or NOTHING for hits in found]

    def _add(self, one: RetrievalSet) -> None:
        judged = {key for qrel in one.qrels.values() for key, relevance in qrel.items() if relevance > 0}
        parts: list[tuple[str, Mapping[str, str]]] = [
            ("query", one.queries),
            ("judged", {key: text for key, text in one.corpus.items() if key in judged}),
            ("corpus", {key: text for key, text in one.corpus.items() if key not in judged}),
        ]
        for part, texts in parts:
            for identifier, text in texts.items():
                words = plain(text)
                if not words:
                    continue  # of no letter and no digit: it would be the same as any other such text
                number = self._number_of.setdefault(_digest(words.replace(" ", "")), len(self.texts))
                if number == len(self.texts):
                    self.texts.append(EvaluationText(text, words))
                self.texts[number].parts.setdefault(part, (one.name, identifier))

    def _index(self, numbers: list[int], size: int) -> NearIndex:
        rest = asdict(self.parameters)
        del rest["shingle_words"]
        return NearIndex([self.texts[number].plain for number in numbers], size=size, **rest)

    def _contained(self, words: str) -> Iterator[int]:
        """Yield the protected texts that stand in a training text, from the start of a word to the end of one."""
        anchors = shingles(words, ANCHOR_WORDS) & self._anchors.keys()
        if not anchors:
            return
        letters = words.replace(" ", "")
        ends = {0, *accumulate(map(len, words.split()))}
        for anchor in anchors:
            for number in self._anchors[anchor]:
                wanted = self.texts[number].plain.replace(" ", "")
                at = letters.find(wanted)
                while at >= 0 and not (at in ends and at + len(wanted) in ends):
                    at = letters.find(wanted, at + 1)
                if at >= 0:
                    yield number


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _anchor(words: str) -> str:
    """Return the shingle to find a text by: the one of most letters, since long words are rare."""
    return max(shingles(words, ANCHOR_WORDS), key=lambda shingle: (len(shingle), shingle))
