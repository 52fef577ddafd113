"""Pairs by form: none has too large a share, and pairs that are made of plain text are of forms, too."""

import random

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from lbr_st.training.forms import Part, at_most, balanced, made_of


@given(st.lists(st.integers(1, 10**6), min_size=4, max_size=9))
def test_no_form_is_above_the_share_and_only_the_largest_are_cut(sizes):
    counts = {str(number): size for number, size in enumerate(sizes)}
    kept = at_most(counts, 0.4)
    assert max(kept.values()) <= 0.4 * sum(kept.values()) + 1
    cut = {form for form in counts if kept[form] < counts[form]}
    assert all(kept[form] == counts[form] for form in counts.keys() - cut)
    assert len({kept[form] for form in cut}) <= 1
    assert all(counts[form] >= counts[other] for form in cut for other in counts.keys() - cut)
    if cut:  # as many as the share allows
        assert max(kept.values()) >= 0.4 * sum(kept.values()) - 2


def table(name, count):
    return Dataset.from_dict({"query": [f"{name} {n}" for n in range(count)], "document": ["text"] * count})


@pytest.mark.parametrize(("names", "first"), [("abcd", 20), ("abc", 100)])
def test_the_largest_form_is_drawn_from_if_there_are_four(names, first):
    said = []
    parts = [Part("a", "one", table("one", 60)), Part("a", "other", table("other", 40))]
    parts += [Part(name, name, table(name, 10)) for name in names[1:]]
    kept = balanced(parts, 0, said.append)
    assert [part.source for part in kept] == [part.source for part in parts]
    assert sum(len(part.rows) for part in kept if part.form == "a") == first
    assert all(part.rows["query"][:] == table(part.form, 10)["query"][:] for part in kept if part.form != "a")
    numbers = [int(query.split()[1]) for query in kept[0].rows["query"][:]]
    assert numbers == sorted(set(numbers))
    assert [part.rows["query"][:] for part in balanced(parts, 0, said.append)] == [p.rows["query"][:] for p in kept]
    assert said[0].startswith(f"Pairs by form: a {first}{' of 100' * (first < 100)}, b 10")


def test_made_pairs_are_of_the_texts_and_named_by_form():
    draw = random.Random(0)
    words = ["".join(draw.choices("bdfgklmnprst", k=3)) + draw.choice("aeiou") + "n" for _ in range(60)]
    texts = [
        f"The {' '.join(draw.choices(words, k=12))}. It has {' '.join(draw.choices(words, k=12))}." for _ in range(30)
    ]
    made = made_of([Dataset.from_dict({"text": texts})], ["crop", "terms", "defines"], 0, lambda what: None)
    assert [part.form for part in made] == ["crop", "keywords", "glossary"]
    assert all(len(part.rows) for part in made[:2])
    for part in made:
        for row in part.rows:
            assert any(row["document"] in text or part.form == "crop" for text in texts)
            assert row["passage"].startswith("m")
    assert made_of([], ["crop"], 0, lambda what: None) == []
