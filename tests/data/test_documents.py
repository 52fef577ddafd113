"""Documents: each kind of file is read as Markdown, and what cannot be read is named and not half used."""

import gzip
import io
import json
import os
import sys
import zipfile
from itertools import pairwise

import pyarrow
import pytest
from pdf_pages import LOCKED, RESTRICTED, pdf_of, unpacked
from pyarrow import parquet

from lbr_st.data import documents
from lbr_st.data.documents import is_documents, pair_tables, read_files
from lbr_st.errors import LBRError

LINE = "This line of the document is long enough to be one of wrapped text, and it goes"


def read(source, **options):
    said = []
    return list(read_files(source, say=said.append, **options)), " ".join(said)


def texts(source, **options):
    return {document.file: document.text.strip() for document in read(source, **options)[0]}


def skipped(source):
    """Return what is said of a folder in which nothing else can be read."""
    with pytest.raises(LBRError) as caught:
        read(source)
    assert caught.value.fix
    return str(caught.value)


def test_a_tree_is_read_by_name_and_hidden_files_and_loops_are_not(tmp_path):
    for name in ("b.txt", "a/z.md", "a/x/y.TXT", ".hidden.txt", ".git/a.txt", "a/.x.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"of {name}")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to("self")
    found, said = read(tmp_path)
    assert [document.file for document in found] == ["a/x/y.TXT", "a/z.md", "b.txt"]
    assert said == "Read 3 files (2 .txt, 1 .md)."
    assert texts(tmp_path / "b.txt") == {"b.txt": "of b.txt"}


def test_text_becomes_markdown_and_lines_keep_their_numbers(tmp_path):
    (tmp_path / "a.rst").write_text(f"Title\n=====\n\n{LINE}\non and on.\n\nSub\n---\n\nx ﬁ::\n\n   code ﬁ\n")
    (tmp_path / "b.md").write_text(f"---\ntitle: Named\nby: me\n---\n{LINE}\n\n```\nﬁ\n```\n")
    (tmp_path / "c.txt").write_bytes(b"other infor-\r\nmation\r\n")
    rst, md, other = read(tmp_path)[0]
    assert rst.text == f"# Title\n\n\n{LINE} on and on.\n\n\n## Sub\n\n\nx fi::\n\n   code ﬁ\n"
    assert md.text == f"\n\n\n# Named\n{LINE}\n\n```\nﬁ\n```\n"
    assert (other.file, other.text, other.line) == ("c.txt", "other information\n\n", 1)


def test_words_are_counted_over_the_folder(tmp_path):
    (tmp_path / "a.txt").write_text("All about the classifies of the anything.")
    (tmp_path / "b.txt").write_text("It classi es any-\nthing.")
    assert texts(tmp_path)["b.txt"] == "It classifies anything."


def test_large_files_come_in_parts_that_are_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PART", 300)
    blocks = [f"Block {n} of words.\n{'more ' * n}\n" for n in range(30)]
    blocks.insert(9, "```\n" + "code\n\n" * 60 + "```\n")
    whole = "\n".join(blocks) + "\n" + "word " * 1000 + "\n\nend"
    (tmp_path / "a.md").write_text(whole)
    found = read(tmp_path)[0]
    assert "".join(document.text for document in found) == whole
    assert all(whole.split("\n")[one.line - 1].endswith(one.text.split("\n")[0]) or "word" in one.text for one in found)
    assert len([one for one in found if "word word" in one.text]) > 5
    assert sum("code" in one.text for one in found) <= 2  # a fence that is not too long is whole
    assert max(len(one.text) for one in found) < 1500


def test_rows_of_tables_are_documents(tmp_path):
    rows = [{"text": "one", "title": "T\nt", "id": 1}, {"text": " "}, {"text": None}, {"text": "four"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"body\tText\nx\tfive\n"))
    (tmp_path / "c.json").write_text('[{"Text": "six"}]')
    parquet.write_table(pyarrow.table({"id": [1], "title": [None], "text": ["seven"]}), tmp_path / "d.parquet")
    found, said = read(tmp_path)
    assert [(one.file, one.text, one.line) for one in found] == [
        ("a.jsonl", "# T t\n\none", 1),
        ("a.jsonl", "four", 4),
        ("b.csv.gz", "five", 1),
        ("c.json", "six", 1),
        ("d.parquet", "seven", 1),
    ]
    assert "left out 2 rows without text" in said
    assert texts(tmp_path / "b.csv.gz", text_column="body") == {"b.csv.gz": "x"}


def test_pairs_and_beir_folders_are_not_documents(tmp_path):
    (tmp_path / "beir").mkdir()
    (tmp_path / "beir" / "corpus.jsonl").write_text('{"_id": "1", "text": "x"}')
    (tmp_path / "pairs.csv").write_text("Question,Answer\nq,a\n")
    (tmp_path / "two.jsonl").write_text('{"query": "q", "pos": ["a"]}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.csv").write_text("id,label\n1,2\n")
    (tmp_path / "text.csv").write_text("id,text\n1,a text\n")
    found, said = read(tmp_path)
    assert [one.file for one in found] == ["text.csv"]
    assert "broken.json cannot be read (line 1: not JSON" in said
    assert "other.csv cannot be read (no column 'text'" in said
    assert pair_tables(tmp_path) == [tmp_path / "pairs.csv", tmp_path / "two.jsonl"]
    assert pair_tables(tmp_path / "text.csv") == []
    wanted = {"": True, "beir": False, "pairs.csv": False, "two.jsonl": False, "other.csv": False, "text.csv": True}
    assert {name: is_documents(tmp_path / name) for name in wanted} == wanted
    assert not is_documents("org/some-set")
    assert not is_documents(tmp_path / "missing.txt")


GERMAN = "Über die Größe der Häuser läßt sich streiten; „schön“ sagte Müller.\n" * 3
FRENCH = "Le naïf élève a mangé la crème brûlée à l’hôtel, où il était déjà.\n" * 3
CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy.\n" * 3


ENCODED = [
    *((GERMAN, "utf-8-sig"), (GERMAN, "utf-16"), (GERMAN, "cp1252"), (FRENCH, "cp1252"), (CZECH, "cp1250")),
    *(("Größe der Häuser\n", "latin-1"), ("日本語の文章です。天気がとても良い。\n" * 3, "shift_jis")),
]


@pytest.mark.parametrize(("text", "encoding"), ENCODED)
def test_encodings(tmp_path, text, encoding):
    (tmp_path / "a.txt").write_bytes((f"{'plain ' * 40}\n" * 300 + text).encode(encoding))
    assert text.split("\n")[0] in texts(tmp_path)["a.txt"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"\x89PNG\r\n\0\0text", "a.txt is binary"),
        ("a.txt", b"\xff\xfea", "a.txt cannot be read ('utf-16"),
        ("a.txt", b" \n\n12 .\n", "a.txt has no text"),
        ("a.csv", b"id,text\n1,good\n2,bad,worse\n", "a.csv cannot be read (line 3: the row has more fields"),
        ("a.jsonl", b'{"text": ""}\n', "a.jsonl has no text"),
        ("a.parquet", b"PAR1 no", "a.parquet cannot be read"),
        ("a.pdf", b"%PDF-1.4 no", "a.pdf is no PDF"),
        ("a.pdf", pdf_of([[], []]), "a.pdf needs OCR (no text in it)"),
        ("a.docx", b"PK no", "a.docx cannot be read"),
        ("a.png", b"\x89PNG", "no document in it (1 .png)"),
    ],
)
def test_what_cannot_be_read_is_named_and_nothing_of_it_used(tmp_path, name, content, said):
    pytest.importorskip({"a.pdf": "pypdfium2", "a.docx": "mammoth"}.get(name, "json"))
    (tmp_path / name).write_bytes(content)
    assert said in skipped(tmp_path)
    (tmp_path / "z.txt").write_text("good")
    found, told = read(tmp_path)
    assert [one.file for one in found] == ["z.txt"]
    assert name in told or ".png" in told


def test_empty_folders_missing_and_many_unreadable_files(tmp_path):
    assert "no document in it (no file)" in skipped(tmp_path)
    assert "no such file or folder" in skipped(tmp_path / "missing")
    for number in range(12):
        (tmp_path / f"{number:02}.txt").write_bytes(b"\0")
    assert "skipped 12: 00.txt is binary, not text, 01.txt" in skipped(tmp_path)
    assert "09.txt is binary, not text, …" in skipped(tmp_path)


def test_files_that_may_not_be_read(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "shut.txt").write_text("shut")
    (tmp_path / "shut.txt").chmod(0)
    os.mkfifo(tmp_path / "pipe.txt")  # reading would wait for ever
    said = read(tmp_path)[1]
    if os.geteuid():  # root may read everything
        assert "shut.txt cannot be read (Permission denied)" in said
    assert "pipe" not in said


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    (tmp_path / "b.pdf").write_bytes(b"")
    with pytest.raises(LBRError, match="pypdfium2") as caught:
        read(tmp_path)
    assert 'pip install "lbr-st[documents]"' in caught.value.fix


def test_pdf(tmp_path):
    pytest.importorskip("pypdfium2")
    names = ("Ada", "Bob", "Cleo", "Dora", "Emil")
    body = [[f"{LINE} to {name}{place}" for place in ("", " and on", " again")] for name in names]
    ends = [f"{LINE[:-13]}, {name} and infor-" for name in names]
    rows = enumerate(zip(names, body, ends, strict=True), start=1)
    pages = [[("Book of Oil", 8), f"mation {name}.", *lines, end, f"{number}"] for number, (name, lines, end) in rows]
    pages[0][1], pages[-1][-2] = ("Chapter one", 18), "The end."
    (tmp_path / "a.pdf").write_bytes(pdf_of(pages))
    [found], said = read(tmp_path)
    assert said == "Read 1 files (1 .pdf)."
    assert found.text.startswith("# Chapter one\n\n")
    assert [f"{one} and information {two}." in found.text for one, two in pairwise(names)] == [True] * 4
    assert "Book of Oil" not in found.text
    assert len(found.pages) == 5
    assert found.pages[0] == 0
    assert found.text[found.pages[1] :].startswith(" Bob.")


def test_pdf_with_ligatures_and_passwords(tmp_path):
    pytest.importorskip("pypdfium2")
    (tmp_path / "a.pdf").write_bytes(pdf_of([["The first officer is different."]], ligatures=True))
    (tmp_path / "b.pdf").write_bytes(unpacked(RESTRICTED))  # everybody may read it
    (tmp_path / "c.pdf").write_bytes(unpacked(LOCKED))
    found, said = read(tmp_path)
    assert [one.text.strip() for one in found] == ["The first officer is different.", "Only printing is forbidden."]
    assert "skipped 1: c.pdf is protected by a password" in said


def page(number, body):
    menu = "<nav><a href='/'>Home</a></nav><ul class='links'><li>Visit our shop</li></ul>"
    return (
        f"<html><head><title>T</title><script>track()</script></head><body>{menu}<div class='cookie-consent'>We use "
        f"cookies.</div><main><h1>Page {number}</h1>{body}</main><footer>Imprint</footer></body></html>"
    )


def test_html(tmp_path):
    pytest.importorskip("markdownify")
    code = "<pre><code>if  x:\n    infor-\n</code></pre>"
    table = "<table><tr><th>Oil</th><th>Months</th></tr><tr><td>Linseed</td><td>6</td></tr></table>"
    long = f"<p>{LINE} <b>on</b> and <a href='/x'>on</a>.</p>"
    (tmp_path / "a.html").write_text(page(1, f"{long}<h2>Sub</h2>{long}{code}{table}<ul><li>item one</li></ul>"))
    text = texts(tmp_path)["a.html"]
    assert text.startswith(f"# Page 1\n\n{LINE} on and on.\n\n## Sub\n\n")
    assert "\nif  x:\n    infor-\n" in text
    assert "| Linseed | 6 |" in text
    assert "- item one" in text
    for word in ("Home", "cookies", "Imprint", "track"):
        assert word not in text


def docx_of(*paragraphs):
    """Return a Word file: (style, text) for each paragraph, and a table of one row at the end."""
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    cells = "".join(f"<w:tc><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:tc>" for text in ("Linseed", "6"))
    names, kinds = "http://schemas.openxmlformats.org", "application/vnd.openxmlformats-"
    main, types = "wordprocessingml.document.main+xml", f'<Types xmlns="{names}/package/2006/content-types">'
    rels = f'<Relationships xmlns="{names}/package/2006/relationships">'
    target = f'Type="{names}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"'
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        part = f'<Override PartName="/word/document.xml" ContentType="{kinds}officedocument.{main}"/>'
        archive.writestr("[Content_Types].xml", f"{types}{part}</Types>")
        archive.writestr("_rels/.rels", f'{rels}<Relationship Id="r1" {target}/></Relationships>')
        start = f'<w:document xmlns:w="{names}/wordprocessingml/2006/main"><w:body>'
        archive.writestr("word/document.xml", f"{start}{body}<w:tbl><w:tr>{cells}</w:tr></w:tbl></w:body></w:document>")
    return file.getvalue()


def test_docx(tmp_path):
    pytest.importorskip("mammoth")
    content = docx_of(("Heading1", "Oils_of_old"), ("Normal", f"{LINE} 1. ﬁrst"), ("Heading2", "Sub"), ("Normal", "x"))
    (tmp_path / "a.docx").write_bytes(content)
    assert texts(tmp_path)["a.docx"].startswith(f"# Oils_of_old\n\n{LINE} 1. first\n\n## Sub\n\nx\n\n|")
    assert "| Linseed | 6 |" in texts(tmp_path)["a.docx"]
    (tmp_path / "b.docx").write_bytes(content[:-200])
    assert "b.docx cannot be read" in read(tmp_path)[1]


def test_security_nothing_that_a_document_names_is_fetched_or_run(tmp_path, monkeypatch):
    pytest.importorskip("markdownify")
    pytest.importorskip("mammoth")
    monkeypatch.setattr("socket.socket", lambda *_, **__: pytest.fail("a document asked for the network"))
    (tmp_path / "secret.txt.hidden").write_text("told")
    outside = "<img src='http://127.0.0.1/x.png'><iframe src='file:secret.txt.hidden'></iframe><script>told</script>"
    (tmp_path / "a.html").write_text(f"<body onload='told'>{outside}<p>Only this text.</p></body>")
    picture = "</w:t></w:r></w:p><w:p><w:r><w:pict>file:secret.txt.hidden</w:pict><w:t>Only this text."
    (tmp_path / "b.docx").write_bytes(docx_of(("Normal", f"Word.{picture}")))
    assert texts(tmp_path)["a.html"] == "Only this text."
    assert texts(tmp_path)["b.docx"].startswith("Word.\n\nOnly this text.")
