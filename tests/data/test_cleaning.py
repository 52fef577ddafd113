"""Cleaning: words and paragraphs become whole, code and tables stay byte for byte."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbr_st.data.cleaning import (
    clean,
    count_words,
    join_pages,
    underlined_titles,
    without_front_matter,
)

LONG = "This line is long enough to be one of wrapped text, and the next one"


def cleaned(text, others=""):
    return clean(text, count_words(text) + count_words(others))


@pytest.mark.parametrize(
    ("text", "others", "wanted"),
    [
        ("some infor-\nmation", "", "some information\n"),  # "infor" is no word
        ("any-\nthing, any one", "anything", "anything, any one\n"),  # "any" is one, but so is "anything"
        ("a well-\nknown man", "well-known, well", "a well-known man\n"),
        ("a long-\nterm plan, long ago", "", "a long-term plan, long ago\n"),
        ("a long-\nterm plan", "long-term longterm long-term", "a long-term plan\n"),  # the more frequent spelling
        ("COVID-\n19 and Smith-\nJones", "", "COVID-19 and Smith-Jones\n\n"),
        ("pre-\nand postwar", "preand", "pre- and postwar\n"),
        ("infor\xad\nmation", "", "information\n"),
        ("a dash -\nnot a hyphen", "", "a dash -\nnot a hyphen"),
    ],
)
def test_words_split_at_line_ends(text, others, wanted):
    assert cleaned(text, others) == wanted


@pytest.mark.parametrize(
    ("text", "others", "wanted"),
    [
        ("ﬁnal oﬀer, ﬂow, oﬃce, aﬄict, ﬅill", "", "final offer, flow, office, afflict, still"),
        ("it classi es, it speci es", "classifies specifies", "it classifies, it specifies"),  # lost
        ("a di erent one", "different", "a different one"),
        ("a di ff erent one", "different", "a different one"),  # torn
        ("the e ﬃ cient way", "efficient", "the efficient way"),
        ("the fi eld is open", "field", "the field is open"),
        ("Pﬁ zer made it", "Pfizer", "Pfizer made it"),
        ("it classi\0es, Of\ue000ce, \uf0b7 \ue001x\ufffd", "classifies office", "it classifies, Office, • x"),
        # Both are words of their own: "be" and "t" come elsewhere, too.
        ("to be t, to be is a t", "befit", "to be t, to be is a t"),
        ("afin de ne pas, de la, ne", "define", "afin de ne pas, de la, ne"),
        ("a sti er man", "", "a sti er man"),  # nobody has written what it might be
    ],
)
def test_ligatures(text, others, wanted):
    assert cleaned(text, others) == wanted


def test_signs_that_nobody_sees():
    assert cleaned("soft\xadly zero\u200bwidth\ufeff 5\xa0km a\u200db") == "softly zerowidth 5 km ab"
    assert cleaned("می\u200cخواهم 👩\u200d🔬") == "می\u200cخواهم 👩\u200d🔬"  # here they have a meaning


def test_lines_of_a_paragraph_are_joined_and_the_others_keep_their_numbers():
    text = f"{LONG}\ngoes on.\n\n- {LONG}\n  goes on\n- second\n\n# Title\nRoses are red\nViolets are blue\n"
    wanted = f"{LONG} goes on.\n\n\n- {LONG} goes on\n- second\n\n\n# Title\nRoses are red\nViolets are blue\n"
    assert cleaned(text) == wanted


CODE = f"{LONG} infor-\n\n  mation ﬁ\xa0\u200b classi es"


@pytest.mark.parametrize(
    "block",
    [
        f"```python\n{CODE}\n```",
        f"~~~\n{CODE}\n```\n{CODE}\n~~~",
        f"    {CODE.replace(chr(10), chr(10) + '    ')}",
        f"\t{LONG}\n\t{LONG} ﬁ",
        f"| {LONG} ﬁ |\n|---|\n| {LONG} infor- |",
        f"{LONG}   ﬁ\n{LONG}   mation",
        "=====  =====\nsome   infor-\n=====  =====",
    ],
)
def test_code_and_tables_stay_as_they_are(block):
    assert cleaned(f"An infor-\nmation.\n\n{block}\n\nThe ﬁrst.", "classifies information") == (
        f"An information.\n\n\n{block}\n\nThe first."
    )


def test_front_matter():
    text = '---\ntitle: "My: page"\ntags:\n  - a\n\n# why\n---\n\nText'
    assert without_front_matter(text) == "\n" * 6 + "# My: page\n\nText"  # lines keep their numbers
    assert without_front_matter("+++\ntitle = 'T'\n[menu]\n+++\n## Own\n") == "\n\n\n# T\n## Own\n"
    for text in (
        "---\n" + "a: b: c: d\n" * 99,
        "---\n\nA rule\n---\n",
        "Text\n---\ntitle: x\n---\n",
        "---\ntitle: never closed\n",
    ):
        assert without_front_matter(text) == text


def test_underlined_titles():
    rst = "=====\nTitle\n=====\n\nFirst\n~~~~~\n\ntext\n\nDeeper\n------\n\nSecond\n~~~~~~\n"
    titles = [line for line in underlined_titles(rst).split("\n") if line]
    assert titles == ["# Title", "## First", "text", "### Deeper", "## Second"]
    assert underlined_titles("A title\n===\n\nSub\n---\nmore") == "# A title\n\n\n## Sub\n\nmore"
    assert underlined_titles("Sub\n---\n\nTop\n===", markdown=True) == "## Sub\n\n\n# Top\n"
    for text in (
        "A sentence, then a rule:\n---\n",
        "some text\nhere\n====\n",
        "```\nTitle\n=====\n```",
        "*****\n-----",
    ):
        assert underlined_titles(text) == text


def book(*pages):
    """Return pages with a running header that names the chapter, and a page number."""
    return [f"Book of Oil · {'I' if n < 5 else 'II'}\n{page}\n{n}" for n, page in enumerate(pages, start=1)]


def test_running_headers_and_page_numbers_go_and_the_sentence_goes_on():
    pages = [f"mation {word} page of the book, whose text\nruns on and on, {word} the infor-" for word in "ABCDEF"]
    whole = cleaned(join_pages(book(*pages, "mation ends.")))
    assert "Book" not in whole
    assert not any(digit in whole for digit in "123456")
    assert whole.count(" the information\f ") == 6


def test_a_word_and_a_sentence_go_on_over_the_page():
    first, second = f"{LONG}\n{LONG} infor-", "mation is found.\nNew"
    assert cleaned(join_pages([first, second])).split("\n\n")[0] == f"{LONG} {LONG} information\f is found."
    assert join_pages([f"{LONG}.", "", "New"]) == f"{LONG}.\n\f\fNew\n\n"


def test_what_recurs_by_chance_or_in_a_table_stays():
    assert "2024" in join_pages([f"2024\n{word} {LONG}" for word in "abc"])  # too few pages
    rows = [f"{n}.5 {n}.7 {n}.9\n{word} {LONG}" for n, word in enumerate("abcdef")]
    assert join_pages(rows).count(".7") == 6
    pages = [f"{word} {LONG}\n{word}{word}" for word in "abcdef"]
    assert all(f"{word}{word}" in join_pages(pages) for word in "abcdef")


PIECES = [
    *(
        "infor-",
        "mation",
        "well-known",
        "classi",
        "es",
        "di ff erent",
        "ﬁ",
        "\xad",
        "\xa0",
        "\u200b",
        "\f",
        "\0",
        "ab",
        LONG,
    ),
    *("\n", "\n\n", " ", "   ", "    ", "\t", "```", "~~~", "|", "# ", "- ", "> ", "---", "===", ". ", "\ue000", "1. "),
]
texts = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


@given(texts)
@settings(max_examples=200, deadline=None)
def test_no_line_and_no_page_is_lost(text):
    once = cleaned(text, "information classifies different")
    assert once.count("\n") == text.count("\n")
    assert once.count("\f") == text.count("\f")


@given(texts, texts.filter(lambda text: "```" not in text), texts)
@settings(max_examples=200, deadline=None)
def test_no_letter_of_a_code_fence_is_lost(before, code, after):
    text = f"{before.replace('```', '').replace('~~~', '')}\n\n```\n{code}\n```\n{after}"
    assert f"\n```\n{code}\n```" in cleaned(text, "information classifies different")
