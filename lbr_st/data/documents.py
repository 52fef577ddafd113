"""Documents from a folder or a file: text, Markdown, HTML, PDF, Word and tables, each as Markdown with its place."""

from __future__ import annotations

import codecs
import gzip
import io
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from lbr_st.data import cleaning
from lbr_st.data.columns import Columns, Rows, find_columns
from lbr_st.data.lines import BadRow, check_text, kind_of
from lbr_st.data.sources import READABLE, _records
from lbr_st.errors import LBRError
from lbr_st.files import notice

if TYPE_CHECKING:
    from bs4 import Tag
    from pypdfium2 import PdfTextPage

PLAIN, WEB, PDF, WORD = (".txt", ".md", ".rst"), (".html", ".htm"), ".pdf", ".docx"
LIBRARIES = {**dict.fromkeys(WEB, "markdownify"), PDF: "pypdfium2", WORD: "mammoth"}
KINDS = (*PLAIN, *LIBRARIES)
PART = 1_000_000  # characters of a text file that make one document, about
MOST_WORDS = 1_000_000  # with more, those that came once are forgotten
SAMPLE, NAMED = 50, 10  # web pages that are compared for menus, and skipped files that are named, at most
LARGER = 1.15  # a line of a PDF in letters so much larger than most is a heading (our choice)
NO_TEXT = "script, style, template, noscript, button, form, nav, aside, [hidden], [role=navigation], [role=search]"
MENU = re.compile(
    r"\b(cookies?|consent|gdpr|breadcrumbs?|sidebar|toc|nav(bar|igation|header|footer)?)\b|"
    r"(^| )((site|page)-)?(header|footer)( |$)"
)


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
    if not path.is_file() or kind_of(path) not in READABLE:
        return path.is_file() and kind_of(path) in KINDS
    return _has(path, document="text") and not _has(path, query="query", document="document")


def pair_tables(source: str | Path) -> list[Path]:
    """Return the tables of a folder, or the file itself, that have known columns of queries and of documents."""
    return [file for file in document_files(Path(source)) if _holds_pairs(file)]


def read_files(
    source: str | Path, *, text_column: str = "text", say: Callable[[str], None] = notice
) -> Iterator[Document]:
    """Return the documents of a file, or of all files below a folder, sorted by name, one after the other.

    Hidden files, BEIR folders and tables of pairs are left out. A file that cannot be read is skipped as a whole. Large
    text files come in parts and tables in rows, so that they may be larger than memory.

    Args:
        source: The file or folder.
        text_column: The column of a table that holds the text. A column ``title`` becomes its heading.
        say: Told at the end what was read and what was skipped.

    Raises:
        LBRError: There is no document, none can be read, or a library is missing.
    """
    path = Path(source)
    if not path.exists():
        raise LBRError("no such file or folder.", where=str(path), fix="Check the path.")
    files, others = [], Counter[str]()
    for file in document_files(path):
        kind = kind_of(file) + " of pairs" * _holds_pairs(file)
        if kind in (*KINDS, *READABLE):
            files.append(file)
        else:
            others[kind or file.name] += 1
    if not files:
        fix = f"Give {', '.join((*KINDS, *READABLE))}. Pictures need text recognition (OCR) first."
        raise LBRError(f"no document in it ({_listed(others) or 'no file'}).", where=str(path), fix=fix)
    for file in files:
        if (library := LIBRARIES.get(kind_of(file))) and find_spec(library) is None:
            fix = 'pip install "lbr-st[documents]"'
            raise LBRError(f"needs the package {library}, which is missing.", where=str(file), fix=fix)
    return _documents(path, files, others, text_column, say)


def _documents(
    root: Path, files: Sequence[Path], others: Counter[str], column: str, say: Callable[[str], None]
) -> Iterator[Document]:
    from tqdm import tqdm

    words, read, skipped, left_out = Counter[str](), Counter[str](), list[str](), 0
    web = [file for file in files if kind_of(file) in WEB]
    menus = cleaning.recurring_lines([text for file in web[:: 1 + len(web) // SAMPLE] for text in _web_page(file)])
    for file in tqdm(files, desc="Reading", unit=" files", disable=None if len(files) > SAMPLE else True):
        name, kind = file.relative_to(root).as_posix() if file != root else file.name, kind_of(file)
        own, bad = Counter[str](), list[BadRow]()
        try:
            parts = _parts(file, column, menus)
            for part in parts(bad):  # all is read before anything is used
                own.update(cleaning.count_words(part.text))
            if not own:
                raise bad[0] if bad else LBRError("needs OCR (no text in it)" if kind == PDF else "has no text")
        except Exception as error:  # each library raises its own
            skipped.append(f"{name} {_reason(error, file)}")
            continue
        read[kind] += 1
        left_out += len(bad)
        words.update(own)
        for part in parts([]):
            text = cleaning.clean(part.text, words)
            if kind == PDF:  # what its fonts tore is not counted any more
                words.subtract(own)
                words.update(cleaning.count_words(text))
                text = re.sub(r"\n{3,}", "\n\n", text)  # here pages tell the place, not lines
            pages = text.split("\f")
            starts = tuple(accumulate(map(len, pages[:-1]), initial=0)) if kind == PDF else ()
            if text.strip():
                yield replace(part, file=name, text="".join(pages), pages=starts)
        if len(words) > MOST_WORDS:
            words = Counter({word: count for word, count in words.items() if count > 1})
    more = f" and {len(skipped) - NAMED:,} more" * (len(skipped) > NAMED)
    told = f"skipped {len(skipped):,}: {', '.join(skipped[:NAMED])}{more}" * bool(skipped)
    if not read:
        raise LBRError(f"no text could be read; {told}.", where=str(root), fix="Fix these files or add others.")
    rows, rest = (
        f"left out {left_out:,} rows without text" * bool(left_out),
        f"not read: {_listed(others)}" * bool(others),
    )
    say(f"{', '.join(filter(None, [f'Read {read.total():,} files ({_listed(read)})', told, rows, rest]))}.")


def _parts(file: Path, column: str, menus: set[str]) -> Callable[[list[BadRow]], Iterable[Document]]:
    """Return what gives a file's parts as often as it is called, and adds rows without text to a list."""
    kind = kind_of(file)
    if kind in READABLE:
        return partial(_rows, file, column)
    if kind in PLAIN:
        return partial(_plain_parts, file, _encoding(file))
    text = cleaning.join_pages(_pdf_pages(file)) if kind == PDF else _word(file) if kind == WORD else _web(file)
    whole = [Document("", cleaning.without_lines(text, menus))]
    return lambda _: whole


def _rows(file: Path, column: str, bad: list[BadRow]) -> Iterator[Document]:
    """Yield each row of a table as a document, under its title if it has one."""
    rows = Rows(file.name, partial(find_columns, document=column), "skip", lambda _: None)
    for number, (where, row) in enumerate(_records(file, "", rows), start=1):
        try:
            rows.use(tuple(row), where)
            [name], titles = rows.shapes[tuple(row)]["document"], rows.shapes[tuple(row)]["title"]
            check_text(row[name], where, f"the value of {name!r}")
        except BadRow as error:
            bad.append(error)
        else:
            title = "".join(f"# {' '.join(str(row[one]).split())}\n\n" for one in titles if row[one])
            yield Document("", title + row[name], line=number)


def _plain_parts(file: Path, encoding: str, _: list[BadRow]) -> Iterator[Document]:
    """Yield a text file in parts that end at empty lines outside of code fences; anywhere if there are none."""
    with _opened(file) as binary:
        text = io.TextIOWrapper(binary, encoding)
        lines, size, line, rest, fenced = list[str](), 0, 1, "", False
        while read := rest + text.readline(PART):
            cut = read.rfind(" ") + 1 if len(read) >= PART and read[-1] != "\n" else 0  # a line of many parts
            read, rest = (read[:cut], read[cut:]) if cut else (read, "")
            lines.append(read)
            size += len(read)
            fenced ^= read.lstrip().startswith(("```", "~~~"))
            if size >= 2 * PART or (size >= PART and not fenced and not read.strip()):
                yield _part("".join(lines), line, kind_of(file))
                line += sum(one.count("\n") for one in lines)
                lines, size = [], 0
        yield _part("".join(lines), line, kind_of(file))


def _part(text: str, line: int, kind: str) -> Document:
    text, dropped = cleaning.front_matter(text) if line == 1 and kind == ".md" else (text, 0)
    return Document("", cleaning.underlined_titles(text), line=line + dropped)


def _encoding(file: Path) -> str:
    """Return the encoding in which all of a text file can be read."""
    with _opened(file) as binary:
        encoding = "utf-16" if binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    if not (sample := _undecodable(file, encoding)):
        return encoding
    from charset_normalizer import from_bytes

    found = from_bytes(sample)
    best = [one.encoding for one in (found.best(),) if one]
    # Western text, and any that is short, is often taken for Baltic, Central European or worse.
    western = sum(byte > 127 for byte in sample) < 20 or any("cp1252" in one.could_be_from_charset for one in found)
    for guess in ["cp1252"] * (western and best != ["cp1254"]) + best:
        if encoding != "utf-16" and not _undecodable(file, guess):
            return guess
    raise LBRError("is in an unknown encoding")


def _undecodable(file: Path, encoding: str) -> bytes:
    """Return lines that are not ASCII of the first block that is not in an encoding; nothing if all are."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with _opened(file) as binary:
        for block in chain(iter(partial(binary.read, PART), b""), [b""]):
            if b"\0" in block and encoding != "utf-16":
                raise LBRError("is binary, not text")
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError:  # English lines would make any guess look right
                return b"\n".join([line for line in block.split(b"\n") if not line.isascii()][:200]) or b"?"
    return b""


def _opened(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb"))


def _web_page(file: Path) -> list[str]:
    with suppress(Exception):  # what is wrong with it is said when it is read
        return [_web(file)]
    return []


def _web(file: Path) -> str:
    """Return the main text of a web page, without menus and notices."""
    from bs4 import BeautifulSoup

    logging.getLogger("bs4.dammit").setLevel(logging.ERROR)  # signs that it cannot read are left out
    with warnings.catch_warnings(action="ignore"):  # of XHTML, which is read as well
        page = BeautifulSoup(_opened(file).read(), "html.parser")
    main = page.main or page.select_one("[role=main]") or page.body or page
    most = len(main.get_text()) / 2  # a class of the whole page may say that it has a sidebar
    for tag in [*main.select(NO_TEXT), *main.find_all(_is_menu)]:
        if not tag.decomposed and (tag.name in ("script", "style") or len(tag.get_text()) < most):
            tag.decompose()
    title = "" if main.find(["h1", "h2"]) or not page.title else f"# {' '.join(page.title.get_text().split())}\n\n"
    return title + _markdown(main)


def _is_menu(tag: Tag) -> bool:
    names = " ".join(name or "" for key in ("class", "id") for name in tag.get_attribute_list(key))
    menu = tag.name in ("header", "footer") or (
        tag.name in ("div", "section", "ul", "ol", "table") and MENU.search(names)
    )
    return "headerlink" in names or (bool(menu) and not tag.find(["h1", "h2"]))


def _word(file: Path) -> str:
    import mammoth
    from bs4 import BeautifulSoup

    with _opened(file) as binary:
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
        pdf = PdfDocument(file if file.suffix.lower() == PDF else _opened(file).read())
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
    made: list[list[str]] = []
    for page in pages:
        made.append([])
        before = 0
        for line, size in page:
            heading = size > least and len(line) <= 120 and line[-1:] not in ".,;" and sum(map(str.isalpha, line)) > 2
            level = min(6, larger.index(size) + 1) if heading else 0
            if level and level == before:  # a heading of two lines
                made[-1][-1] += f" {line.strip()}"
            else:
                made[-1].append((f"{'#' * level} " if level else "\\" * (line[:1] == "#")) + line)
            before = level
    return ["\n".join(page).replace("\ufffe", "-\n") for page in made]  # PDFium's sign for a word that goes on


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


def document_files(path: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield a file, or the files below a folder by name, without hidden ones, BEIR folders and loops of links."""
    if not path.is_dir():
        if path.is_file() or path.is_symlink():  # a link to nothing is named among those skipped
            yield path
    elif not (path / "corpus.jsonl").is_file() and path.resolve() not in above:
        try:
            items = sorted(path.iterdir())
        except OSError:
            items = []
            yield path  # it is named among what is not read
        for item in items:
            if not item.name.startswith("."):
                yield from document_files(item, above | {path.resolve()})


def _holds_pairs(file: Path) -> bool:
    try:
        return kind_of(file) in READABLE and _has(file, query="query", document="document")
    except (LBRError, OSError):
        return False  # what is wrong with it is said when it is read


def _has(file: Path, **wanted: str) -> bool:
    """Tell whether a table has such columns, or several that may be."""
    names = list[str]()

    def keep(given: Sequence[str], _: str) -> Columns:
        names.extend(given)
        return {}

    first = next(_records(file, "", Rows(file.name, keep, "skip", notice)), None)
    try:
        find_columns(names or list(first[1] if first else ()), "", **wanted)
    except LBRError as error:
        return not isinstance(error, BadRow)
    return True


def _reason(error: Exception, file: Path) -> str:
    if not isinstance(error, LBRError):
        what = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".partition("\n")[0][:100]
    elif error.where is None:
        return error.what.rstrip(".")
    else:
        what = ": ".join(filter(None, [error.where.removeprefix(str(file)).lstrip(", "), error.what.rstrip(".")]))
    return f"cannot be read ({what})"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(6)) + ", …" * (len(counts) > 6)
