"""Passages: nothing of a document is lost, no passage is over the budget, and each says where it is from."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbr_st.data import passages
from lbr_st.data.documents import Document
from lbr_st.data.passages import _pieces, num_words, read_documents, sentence_ends
from lbr_st.errors import LBRError

GUIDE = """Before any heading stands a preface.

# Tools

## The *scythe* {#scythe}

Wipe the blade, see Fig. 3 or e.g. the manual. Then oil it.
Store it dry!

```sh
# no heading

ls | wc
```

| part | weight |
|------|--------|
| blade | 600 |

# [Bread](bread.md)
- Let the dough rest
- Bake it hot
"""


@pytest.fixture
def cut(monkeypatch):
    def run(*texts, most=1000, kind=".md", num_tokens=None, **fields):
        said = []
        documents = [Document(f"{number}{kind}", text, **fields) for number, text in enumerate(texts)]
        monkeypatch.setattr(passages, "read_files", lambda *_, **__: documents)
        return read_documents("", num_tokens=num_tokens, max_tokens=most, say=said.append), said

    return run


def test_a_passage_lies_below_one_heading_and_says_where_it_begins(cut):
    table, _ = cut(GUIDE)
    assert table.column_names == ["text", "heading", "file", "place"]
    assert table["heading"][:] == ["", "Tools > The scythe", "Bread"]
    assert table["place"][:] == ["line 1", "line 7", "line 21"]
    assert table["file"][:] == ["0.md"] * 3
    assert table["text"][1].startswith("Wipe the blade")
    assert table["text"][1].endswith("| blade | 600 |")
    assert table["text"][2] == "- Let the dough rest\n- Bake it hot"


def test_code_tables_and_sentences_stay_whole_where_they_fit(cut):
    table, said = cut(GUIDE, most=16)
    assert table["text"][1:4] == [
        "Wipe the blade, see Fig. 3 or e.g. the manual.",
        "Then oil it.\nStore it dry!",
        "```sh\n# no heading\n\nls | wc\n```",
    ]
    assert "| part | weight |\n|------|--------|" not in table["text"][:]  # too many marks
    assert "0.0% cut inside a sentence at 16 tokens" in said[0]


def test_sentences_end_where_a_reader_would_end_them():
    text = "As Dr. Who said (e.g. in 3.5). “Really?” Yes! 她来了。他走了！\n- one\n2. two"
    ends = [0, *sentence_ends(text), len(text)]
    found = [text[start:end].strip() for start, end in pairwise(ends)]
    parts = ["As Dr.", "Who said (e.g. in 3.5).", "“Really?”", "Yes!", "她来了。", "他走了！", "", "- one", "2. two"]
    assert found == parts


def test_the_passages_of_a_section_are_about_as_long(cut):
    table, _ = cut(" ".join(f"One two three four five six {number}." for number in range(30)), most=100)
    assert sorted(map(num_words, table["text"])) == [80, 80, 80]


@pytest.mark.parametrize("text", ["word " * 100, "x" * 400 + " y", "许" * 100])
def test_what_has_no_sentence_is_cut_at_the_budget(cut, text):
    def num_tokens(text):
        return -(-len(text) // 4)

    table, said = cut(text, "Two words.", most=10, num_tokens=num_tokens)
    assert max(map(num_tokens, table["text"])) <= 10
    assert "cut inside a sentence at 10 tokens" in said[0]
    assert not said[0].partition("; ")[2].startswith("0.0%")


BLOCKS = [
    "Fig. 3 shows it. So it is!\n",
    "# Head\n",
    "## Sub #\n",
    "\n",
    "```\na\n\n# Head\n```\n",
    "```\n",
    "~~~ py\n",
]
BLOCKS += [
    "`````\n",
    "| a | b |\n| - | - |\n",
    "- item\n",
    "许多字。没有空格。\n",
    "tail",
    "word " * 30 + "\n",
    "x" * 50 + "\n",
]
blocks = st.lists(st.sampled_from(BLOCKS), max_size=12).map("".join)


@settings(max_examples=200, deadline=None)
@given(blocks, st.integers(1, 40))
def test_nothing_is_lost_and_nothing_is_over_the_budget(text, most):
    pieces = [piece for _, piece in _pieces(text, num_words, most)]
    kept = "".join(text[piece.start : piece.end] for piece in pieces)
    left = text
    for heading in ("# Head", "## Sub"):  # some are in code, and kept
        assert kept.count(heading) <= text.count(heading)
        left, kept = left.replace(heading, ""), kept.replace(heading, "")
    assert list(filter(str.isalnum, kept)) == list(filter(str.isalnum, left))
    assert all(piece.tokens <= most or piece.end - piece.start < 2 for piece in pieces)
    assert all(num_words(text[piece.start : piece.end]) <= piece.tokens for piece in pieces)


def test_pages_rows_and_parts_of_a_file_have_their_places(cut):
    text = "First page here.\n\nStill the first.\n\nOn the second page."
    pages = (0, text.index("On the"))
    assert cut(text, most=5, pages=pages)[0]["place"][:] == ["page 1", "page 1", "page 2"]
    assert cut(text, most=5, line=100)[0]["place"][:] == ["line 100", "line 102", "line 104"]
    assert cut(text, most=5, line=7, kind=".csv.gz")[0]["place"][:] == ["row 7"] * 3


def test_what_says_nothing_or_the_same_again_is_dropped_and_counted(cut):
    table, said = cut("Real text here.\n\n# A\n\n─────\n\n# B\n\n12\n\n# C\nWord\n# D\nReal  TEXT, here", "Other text.")
    assert table["text"][:] == ["Real text here.", "Other text."]
    line = "2 passages, 4 tokens in the median, 1.0 a word; 0.0% cut inside a sentence at 1000 tokens; "
    assert said == [f"{line}left out: 3 of fewer than two words, 1 that repeat another."]


def test_a_language_that_the_base_does_not_know_is_named(cut):
    _, said = cut("Grüezi mitenand, wie gohts?\n# B\nUnd dir?", num_tokens=len)
    assert said[1].startswith("Warning: with 4.")


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        ([], "fewer than two"),
        (["---"], "fewer than two"),
        (["Only one."], "fewer"),
        (["Same text."] * 3, "left out: 2 that repeat another"),
    ],
)
def test_too_few_passages_are_an_error(cut, texts, what):
    with pytest.raises(LBRError, match=what):
        cut(*texts)
