"""Documents from a folder or a file: text, Markdown, HTML, PDF, Word and tables, each as Markdown with its place."""

from __future__ import annotations

import codecs
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbr_st.data import cleaning
from lbr_st.data.columns import Rows, find_columns
from lbr_st.data.lines import BadRow, check_text, kind_of
from lbr_st.data.sources import READABLE, _records
from lbr_st.errors import LBRError
from lbr_st.files import bar, notice

if TYPE_CHECKING:
    from bs4 import Tag
    from pypdfium2 import PdfTextPage

PLAIN, WEB, PDF, WORD = (".txt", ".md", ".rst"), (".html", ".htm"), ".pdf", ".docx"
KINDS = (*PLAIN, *WEB, PDF, WORD)
PAIRS = {"query": "query", "document": "document"}  # columns of a table that is no document
PART = 1_000_000  # characters of a text file that make one document, about
NAMED = 10  # skipped files that are named, at most
LARGER = 1.15  # a line of a PDF in letters so much larger than most is a heading (our choice)
NO_TEXT = "script, style, template, noscript, button, form, nav, aside, [hidden], [role=navigation], [role=search]"
MENU = re.compile(r"cookie|consent|breadcrumb|sidebar|navbar|navigation|(^| )(headerlink|header|footer|nav|toc)( |$)")


@dataclass(frozen=True)
class Document:
    """A text and its place: a file, a part of a large one, or a row of a table."""

    file: str  # relative to the folder, with "/"
    text: str  # Markdown
    pages: tuple[int, ...] = ()  # where in `text` each page begins; empty for a format without pages
    line: int = 1  # number of the text's first line in the file; of a table, the row


def is_documents(source: str | Path) -> bool:
    """Whether a source is read as documents: a folder that is not BEIR's, a file of such a kind, a table of texts."""
    path = Path(source)
    if path.is_dir():
        return not (path / "corpus.jsonl").is_file()
    texts = path.is_file() and (kind_of(path) in KINDS or _has(path, document="text"))
    return texts and not _has(path, **PAIRS)


def pair_tables(source: str | Path) -> list[Path]:
    """Return the tables of a folder, or the file itself, that have known columns of queries and of documents."""
    return [file for file in document_files(Path(source)) if _has(file, **PAIRS)]


def read_files(
    source: str | Path, *, text_column: str = "text", say: Callable[[str], None] = notice
) -> Iterator[Document]:
    """Yield the documents of a file, or of all files below a folder, sorted by name, one after the other.

    Hidden files, BEIR folders and tables of pairs are left out. A file that cannot be read is skipped as a whole. Large
    text files come in parts and tables in rows, so that they may be larger than memory. A table's column ``title``
    becomes the heading. ``say`` is told at the end what was read and what was skipped.
    """
    path = Path(source)
    if not path.exists():
        raise LBRError("no such file or folder.", where=str(path), fix="Check the path.")
    kinds = {file: kind_of(file) for file in document_files(path)}
    files = [file for file, kind in kinds.items() if kind in (*KINDS, *READABLE) and not _has(file, **PAIRS)]
    others = Counter(kind or file.name for file, kind in kinds.items() if kind not in (*KINDS, *READABLE))
    if not files:
        fix = f"Give {', '.join((*KINDS, *READABLE))}. Pictures need text recognition (OCR) first."
        raise LBRError(f"no document in it ({_listed(others) or 'no file'}).", where=str(path), fix=fix)
    words, read, skipped, empty = Counter[str](), Counter[str](), list[str](), 0
    above = path if path.is_dir() else path.parent
    for file in bar(files, "Reading", "files", shown=len(files) > NAMED):
        kind, own = kind_of(file), Counter[str]()
        try:
            parts = _parts(file, text_column)
            for part in parts():  # all is read before anything is used
                own.update(cleaning.count_words(part.text))
            if not own:
                raise LBRError("needs OCR (no text in it)" if kind == PDF else "has no text")
        except ImportError as error:
            raise LBRError(f"{error}.", where=str(file), fix='Run: pip install "lbr-st[documents]"') from error
        except Exception as error:  # each library raises its own
            skipped.append(f"{file.relative_to(above).as_posix()} {_reason(error)}")
            continue
        read[kind] += 1
        words.update(own)
        for part in parts():
            text = cleaning.clean(part.text, words)
            if kind == PDF:  # what its fonts tore is not counted any more
                words.subtract(own)
                words.update(cleaning.count_words(text))
                text = re.sub(r"\n{3,}", "\n\n", text)  # here pages tell the place, not lines
            pages = text.split("\f")
            starts = tuple(accumulate(map(len, pages[:-1]), initial=0)) if kind == PDF else ()
            if text.strip():
                yield replace(part, file=file.relative_to(above).as_posix(), text="".join(pages), pages=starts)
            empty += kind in READABLE and not text
    told = [f"skipped {len(skipped):,}: {', '.join(skipped[:NAMED])}{', …' * (len(skipped) > NAMED)}"] * bool(skipped)
    if not read:
        raise LBRError(f"no text could be read; {told[0]}.", where=str(path), fix="Fix these files or add others.")
    told += [f"left out {empty:,} rows without text"] * bool(empty)
    told += [f"not read: {_listed(others)}"] * bool(others)
    say(", ".join([f"Read {read.total():,} files ({_listed(read)})", *told]) + ".")


def _parts(file: Path, column: str) -> Callable[[], Iterable[Document]]:
    """Return what gives a file's parts as often as it is called."""
    kind = kind_of(file)
    if kind in READABLE:
        return partial(_rows, file, column)
    if kind in PLAIN:
        return partial(_plain_parts, file, _encoding(file))
    text = cleaning.join_pages(_pdf_pages(file)) if kind == PDF else _word(file) if kind == WORD else _web(file)
    return lambda: [Document("", text)]


def _rows(file: Path, column: str) -> Iterator[Document]:
    """Yield each row of a table as a document, under its title if it has one; "" for one without text."""
    rows = Rows(file.name, partial(find_columns, document=column), "skip", lambda _: None)
    for number, (where, row) in enumerate(_records(file, "", rows), start=1):
        try:
            rows.use(tuple(row), where)
            [name], titles = rows.shapes[tuple(row)]["document"], rows.shapes[tuple(row)]["title"]
            check_text(row[name], where, f"the value of {name!r}")
        except BadRow:
            yield Document("", "", line=number)
        else:
            title = "".join(f"# {' '.join(str(row[one]).split())}\n\n" for one in titles if row[one])
            yield Document("", title + row[name], line=number)


def _plain_parts(file: Path, encoding: str) -> Iterator[Document]:
    """Yield a text file in parts that end at empty lines outside of code fences; anywhere if there are none."""
    with file.open(encoding=encoding) as text:
        lines, size, line, fenced = list[str](), 0, 1, False
        for read in chain(iter(partial(text.readline, PART), ""), [""]):
            lines.append(read)
            size += len(read)
            fenced ^= read.lstrip().startswith(("```", "~~~"))
            if not read or size >= 2 * PART or (size >= PART and not fenced and not read.strip()):
                part, markdown = "".join(lines), kind_of(file) == ".md"
                if line == 1 and markdown:
                    part = cleaning.without_front_matter(part)
                yield Document("", cleaning.underlined_titles(part, markdown), line=line)
                line += sum(one.count("\n") for one in lines)
                lines, size = [], 0


def _encoding(file: Path) -> str:
    """Return the encoding of a text file, by the first of its lines that are not ASCII."""
    with file.open("rb") as binary:
        start = binary.read(PART)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        if b"\0" in start:
            raise LBRError("is binary, not text")
        binary.seek(0)
        sample = b"".join(islice((line for line in binary if not line.isascii()), 200))
    try:
        sample.decode()
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        found = from_bytes(sample)
        best = [one.encoding for one in (found.best(),) if one]
        # Western text, and any that is short, is often taken for Baltic, Central European or worse.
        western = sum(byte > 127 for byte in sample) < 20 or any("cp1252" in one.could_be_from_charset for one in found)
        return "cp1252" if western and best != ["cp1254"] else (best or ["utf-8"])[0]
    return "utf-8-sig"


def _web(file: Path) -> str:
    """Return the main text of a web page, without menus and notices."""
    from bs4 import BeautifulSoup

    with warnings.catch_warnings(action="ignore"):  # of XHTML, which is read as well
        page = BeautifulSoup(file.read_bytes(), "html.parser")
    main = page.main or page.select_one("[role=main]") or page.body or page
    for tag in [*main.select(NO_TEXT), *main.find_all(_is_menu)]:
        tag.decompose()
    title = "" if main.find(["h1", "h2"]) or not page.title else f"# {' '.join(page.title.get_text().split())}\n\n"
    return title + _markdown(main)


def _is_menu(tag: Tag) -> bool:
    names = " ".join(name or "" for key in ("class", "id") for name in tag.get_attribute_list(key))
    return bool(tag.name in ("header", "footer") or MENU.search(names)) and not tag.find(["h1", "h2"])


def _word(file: Path) -> str:
    import mammoth
    from bs4 import BeautifulSoup

    with file.open("rb") as binary:
        titles = "p[style-name='Title'] => h1:fresh"
        page = mammoth.convert_to_html(binary, style_map=titles, convert_image=lambda _: []).value
    return _markdown(BeautifulSoup(page, "html.parser"))


def _markdown(page: Tag) -> str:
    from markdownify import ATX, MarkdownConverter

    plain = ["a", "b", "em", "i", "img", "s", "strong"]
    options: dict[str, Any] = {"escape_asterisks": False, "escape_underscores": False, "wrap": True, "wrap_width": None}
    return MarkdownConverter(heading_style=ATX, bullets="-", strip=plain, **options).convert_soup(page)


def _pdf_pages(file: Path) -> list[str]:
    """Return the text of each page; lines in larger letters than most are headings."""
    from pypdfium2 import PdfDocument, PdfiumError

    try:
        pdf = PdfDocument(file)
    except PdfiumError as error:
        what = str(error).removeprefix("Failed to load document ")
        raise LBRError("is protected by a password" if "assword" in what else f"is no PDF {what}") from error
    with closing(pdf):
        pages = [list(_sized_lines(page.get_textpage())) for page in pdf]
    letters: Counter[float] = Counter()
    for line, size in chain(*pages):
        letters[size] += len(line)
    least = LARGER * max(letters, key=lambda size: letters[size], default=0.0)
    larger = sorted((size for size in letters if size > least), reverse=True)

    def shown(line: str, size: float) -> str:
        if size > least and len(line) <= 120 and line[-1:] not in ".,;" and sum(map(str.isalpha, line)) > 2:
            return f"{'#' * min(6, larger.index(size) + 1)} {line.strip()}"
        return "\\" * (line[:1] == "#") + line

    texts = ["\n".join(shown(*line) for line in page) for page in pages]
    texts = [re.sub(r"^(#+ )(.*)\n\1", r"\1\2 ", text, flags=re.M) for text in texts]  # a heading of two lines
    return [text.replace("\ufffe", "-\n") for text in texts]  # PDFium's sign for a word that goes on


def _sized_lines(text: PdfTextPage) -> Iterator[tuple[str, float]]:
    """Yield a page's lines, each with the size of its first letter; 0 if it has none."""
    from pypdfium2 import raw

    place, matrix = 0, raw.FS_MATRIX()
    for line in text.get_text_range().split("\r\n"):
        size = 0.0
        if letter := re.search(r"[^\W\d_]", line):
            at = raw.FPDFText_GetCharIndexFromTextIndex(text, place + letter.start())
            raw.FPDFText_GetMatrix(text, at, matrix)
            size = round(raw.FPDFText_GetFontSize(text, at) * math.hypot(matrix.c, matrix.d), 1)
        yield line, size
        place += len(line) + 2


def document_files(path: Path) -> list[Path]:
    """Return a file, or the files below a folder by name, without hidden ones, BEIR folders and links to folders."""
    found = [] if path.is_dir() else [path]
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if name[0] != "."]
        if "corpus.jsonl" not in names:
            found += [Path(folder, name) for name in names if name[0] != "."]
    return sorted(file for file in found if file.is_file())


def _has(file: Path, **wanted: str) -> bool:
    """Tell whether a file is a table whose first row has such columns."""
    rows = Rows(file.name, partial(find_columns, **wanted), "skip", notice)
    try:
        return kind_of(file) in READABLE and any(rows.use(tuple(row), at) for at, row in _records(file, "", rows))
    except (LBRError, OSError):
        return False  # what is wrong with it is said when it is read


def _reason(error: Exception) -> str:
    if not isinstance(error, LBRError):
        what = getattr(error, "strerror", None) or str(error)
    elif error.where is None:
        return error.what.rstrip(".")
    else:  # without the path, which is this machine's
        what = ": ".join([*re.findall(r"\w+ \d+$", error.where), error.what])
    return f"cannot be read ({what.partition(chr(10))[0][:100].rstrip('.')})"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(6)) + ", …" * (len(counts) > 6)
