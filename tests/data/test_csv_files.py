"""Tables as programs write them: what is read is what was written, or the file is refused."""

import csv
import io

import pandas
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from lbr_st.data.csv_files import read_csv_records
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
