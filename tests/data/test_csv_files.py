"""Tables as programs write them: what is read is what was written, or the file is refused."""

import csv
import gzip
import io

import pandas
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from lbr_st.data.csv_files import read_csv_records
from lbr_st.data.sources import read_pairs
from lbr_st.errors import LBRError

SIGNS = "ab,;|\t\"'\n\\é N=[ "
# \N is how databases write nothing.
free = st.text(SIGNS, max_size=8).filter(lambda text: text != "\\N" and (text.strip() or not text))
texts = free | st.sampled_from(["", "a, b", 'say "x"', "two\nlines", "two\r\nlines", "x\ry", "5\\"])
names = st.permutations(["query", "document", "id"])


@st.composite
def written(draw):
    """Return the columns of a table, its rows, and the bytes that the csv module or pandas makes of them."""
    columns = draw(names)[: draw(st.integers(1, 3))]
    rows = draw(st.lists(st.lists(texts, min_size=len(columns), max_size=len(columns)), min_size=1, max_size=4))
    options = {"quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE]))}
    if options["quoting"] == csv.QUOTE_NONE or draw(st.booleans()):
        options |= {"escapechar": "\\", "doublequote": draw(st.booleans())}
    separator = draw(st.sampled_from(",;\t|"))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    try:
        if draw(st.booleans()):
            table = pandas.DataFrame(rows, columns=columns)
            whole = table.to_csv(sep=separator, index=draw(st.booleans()), lineterminator=end, **options)
        else:
            file = io.StringIO(newline="")
            csv.writer(file, delimiter=separator, lineterminator=end, **options).writerows([columns, *rows])
            whole = file.getvalue()
    except csv.Error:  # it cannot write an empty text without quotes
        reject()
    return columns, rows, whole.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))


@given(written())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_read_is_what_was_written(tmp_path, table):
    columns, rows, content = table
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    try:
        read = [[row[name].strip() for name in columns] for _, row in read_csv_records(path)]
    except LBRError:
        return
    # White space around an unquoted text may be a part of the line's end.
    assert read == [[text.strip() for text in row] for row in rows], content


def read(tmp_path, content, name="table.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [tuple(row.values()) for _, row in read_csv_records(path)]


RAGGED = "Put texts that contain commas, quotes or line ends in quotes"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("query,document\nkettle,A pot, with a spout, for boiling\n", ["line 2", "more fields", "(4, not 2)", RAGGED]),
        ("query,document,id\na,b,1\nkettle,A pot\n", ["line 3", "fewer fields", "(2, not 3)"]),
        ("query;document\na;b\nc;d;e\n", ["line 3", "more fields", "semicolons"]),
        (
            'query,document\nkettle,"He said \\"hi\\" \\alpha"\n',
            ["line 2", "not CSV", "Backslashes stand before quotes"],
        ),
        ('query,document\nkettle,5\\" pot\n', ["a backslash may be literal", "JSON lines"]),
        ("query,document\nkettle,a \\\\\\\\ b\n", ["a backslash may be literal"]),
        ("query;document,id\na;b,c\n", ["commas or semicolons may separate", "names in the header in quotes"]),
        ('query,document\na, "b"\n', ["line 2", "a space stands before a quote"]),
        ("query,query\na,b\n", ["names 'query' twice"]),
        ("query,document,\na,b, and more\n", ["line 2", "without a name"]),
        ("query,document\n", ["a header with no row below it"]),
        ("text\na\rb\n", ["line 2", "CR and some with LF"]),
        ("query,document\na,b\n".encode("utf-16-le"), ["line 1", "not UTF-8"]),
        ("query,document\na,é\n".encode("latin-1"), ["line 2", "not UTF-8 (byte 3"]),
    ],
)
def test_what_cannot_be_right_is_named(tmp_path, content, parts):
    with pytest.raises(LBRError) as caught:
        read(tmp_path, content)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "query,document\ra,b\r",
        "query,document\r\na,b\r\n",
        "query,document\r\r\na,b\r\r\n",  # Python on Windows, without newline=""
        "\n  \nquery,document\n\na,b\n\n",
        "query, document\na, b\n",
        'query, document\na, "b"\n',
        " query ,document \na,b\n",
        "query;document\na;b\n",
        "query\tdocument\na\tb\n",
        "query|document\na|b\n",
        '"query","document"\n"a","b"\n',
        "query,document\na,b\n".encode("utf-16"),
        "query,document\na,b\n".encode("utf-8-sig"),
        "query,document\na,b",
    ],
)
def test_shapes_that_people_have(tmp_path, content):
    assert read(tmp_path, content) == [("a", "b")]


def test_how_a_file_is_written_is_found_out(tmp_path, capsys):
    assert read(tmp_path, "query;document\na;b, c\n") == [("a", "b, c")]
    assert "table.csv: semicolons separate the columns." in capsys.readouterr().err
    assert read(tmp_path, "query\tdocument\na\tb, c\n", "table.tsv") == [("a", "b, c")]
    assert not capsys.readouterr().err
    assert read(tmp_path, '"query";"document, in full"\na;b, c\n') == [("a", "b, c")]
    assert read(tmp_path, "text\nA pot, with a spout; and a lid\n") == [("A pot, with a spout; and a lid",)]
    assert read(tmp_path, ",query\n0,a\n") == [("0", "a")]  # pandas' index
    assert read(tmp_path, "query,document\na,\\N\n") == [("a", "")]


def test_backslashes_before_quotes(tmp_path):
    # As MySQL and Spark write them; as CSV has them at the end of a path, and in code.
    assert read(tmp_path, 'query,document\na,"He said \\"hi\\", twice"\n') == [("a", 'He said "hi", twice')]
    assert read(tmp_path, 'query,document\na,"C:\\dir\\"\n') == [("a", "C:\\dir\\")]
    assert read(tmp_path, 'query,document\na,"f(""\\""x\\""\\n"")"\n') == [("a", 'f("\\"x\\"\\n")')]


def test_packed_files_and_suffixes(tmp_path):
    lines = b'{"query": "a", "document": "b"}\r\n{"query": "c", "document": "d"}'
    table = b"query,document\na,b\nc,d\n"
    files = {
        "a.jsonl.gz": gzip.compress(lines),
        "b.ndjson": lines,
        "C.CSV.GZ": gzip.compress(table),
        "PAIRS.CSV": table,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert read_pairs(tmp_path / name)["document"][:] == ["b", "d"]
    (tmp_path / "cut.jsonl.gz").write_bytes(files["a.jsonl.gz"][:-9])
    (tmp_path / "no.csv.gz").write_bytes(table)
    for name in ("cut.jsonl.gz", "no.csv.gz"):
        with pytest.raises(LBRError, match=f"{name}: cannot be unpacked"):
            read_pairs(tmp_path / name)
