"""Documents from a folder or a file: text, Markdown, HTML, PDF, Word and tables, each as Markdown with its place."""

from __future__ import annotations

import codecs
import gzip
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from lbr_st.data.cleaning import (
    clean,
    count_words,
    front_matter,
    join_pages,
    recurring_lines,
    underlined_titles,
    without_lines,
)
from lbr_st.data.columns import Columns, Rows, find_columns
from lbr_st.data.lines import BadRow, check_text, kind_of
from lbr_st.data.sources import READABLE, _records
from lbr_st.data.texts import normalise
from lbr_st.errors import LBRError
from lbr_st.files import notice

if TYPE_CHECKING:
    from bs4 import Tag
    from pypdfium2 import PdfTextPage

PLAIN, WEB, PDF, WORD = (".txt", ".md", ".rst"), (".html", ".htm"), ".pdf", ".docx"
LIBRARIES = {**dict.fromkeys(WEB, "markdownify"), PDF: "pypdfium2", WORD: "mammoth"}
KINDS = (*PLAIN, *LIBRARIES)
PART = 1_000_000
"""Characters of a text file that make one document, about."""
SAMPLE, NAMED = 50, 10
"""Most web pages that are compared for menus, and most skipped files that are named."""
MOST_WORDS = 1_000_000
"""With more, those that came once are forgotten."""
LARGER = 1.15
"""A line of a PDF in letters so much larger than most is a heading (our choice)."""
NO_TEXT = "script, style, template, noscript, button, form, nav, aside, [hidden], [role=navigation], [role=search]"
_MENU = re.compile(r"(?:^|[\s_-])(?:cookies?|consent|gdpr|breadcrumbs?|sidebar|navbar|navigation|headerlink)(?:[\s_-]|$)")
_EDGE = re.compile(r"(?:^|[\s_-])(?:header|footer|banner)(?:[\s_-]|$)")


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
    if kind_of(path) not in READABLE or not path.is_file():
        return kind_of(path) in KINDS and path.is_file()
    return _has(_names(path), document="text") and not _holds_pairs(path)


def pair_tables(source: str | Path) -> list[Path]:
    """Return the tables of a folder, or the file itself, that have known columns of queries and of documents."""
    return [file for file in _files(Path(source)) if _holds_pairs(file)]


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
    for file in _files(path):
        if _holds_pairs(file):
            others[f"{kind_of(file)} of pairs"] += 1
        elif kind_of(file) in (*KINDS, *READABLE):
            files.append(file)
        else:
            others[kind_of(file) or file.name] += 1
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

    words: Counter[str] = Counter()
    read: Counter[str] = Counter()
    skipped: list[str] = []
    left_out = 0
    web = [file for file in files if kind_of(file) in WEB]
    menus = recurring_lines([text for file in web[:: 1 + len(web) // SAMPLE] for text in _web_page(file)])
    for file in tqdm(files, desc="Reading", unit=" files", disable=None if len(files) > SAMPLE else True):
        name, kind = file.relative_to(root).as_posix() if file != root else file.name, kind_of(file)
        own: Counter[str] = Counter()
        bad: list[BadRow] = []
        try:
            parts = _parts(file, column, menus)
            for part in parts(bad):  # all is read before anything is used
                own.update(count_words(part.text))
            if not own:
                raise bad[0] if bad else LBRError("needs OCR (no text in it)" if kind == PDF else "has no text")
        except Exception as error:  # each library raises its own
            skipped.append(f"{name} {_reason(error, file)}")
            continue
        read[kind] += 1
        left_out += len(bad)
        words.update(own)
        for part in parts([]):
            text = clean(part.text, words)
            if kind == PDF:  # what its fonts tore is not counted any more
                words.subtract(own)
                words.update(count_words(text))
            pages = text.split("\f")
            starts = tuple(accumulate(map(len, pages[:-1]), initial=0)) if kind == PDF else ()
            if text.strip():
                yield replace(part, file=name, text="".join(pages), pages=starts)
        if len(words) > MOST_WORDS:
            words = Counter({word: count for word, count in words.items() if count > 1})
    more = f" and {len(skipped) - NAMED:,} more" * (len(skipped) > NAMED)
    told = [
        f"skipped {len(skipped):,}: {', '.join(skipped[:NAMED])}{more}" * bool(skipped),
        f"left out {left_out:,} rows without text" * bool(left_out),
        f"not read: {_listed(others)}" * bool(others),
    ]
    if not read:
        raise LBRError(f"no text could be read; {told[0]}.", where=str(root), fix="Fix these files or add others.")
    say(f"{', '.join(filter(None, [f'Read {read.total():,} files ({_listed(read)})', *told]))}.")


def _parts(file: Path, column: str, menus: set[str]) -> Callable[[list[BadRow]], Iterable[Document]]:
    """Return what gives a file's parts as often as it is called, and adds rows without text to a list."""
    kind = kind_of(file)
    if kind in READABLE:
        return partial(_rows, file, column)
    if kind in PLAIN:
        return partial(_plain_parts, file, _encoding(file))
    text = join_pages(_pdf_pages(file)) if kind == PDF else _word(file) if kind == WORD else _web(file)
    whole = [Document("", without_lines(text, menus))]
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
        lines: list[str] = []
        size, line, rest, fenced = 0, 1, "", False
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
    text, dropped = front_matter(text) if line == 1 and kind == ".md" else (text, 0)
    return Document("", underlined_titles(text, kind), line=line + dropped)


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
    guesses = ["cp1252"] * (western and best != ["cp1254"]) + best
    for guess in guesses if encoding != "utf-16" else []:
        if not _undecodable(file, guess):
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
            except UnicodeDecodeError as error:
                # English lines would make any guess look right.
                foreign = [line for line in block.split(b"\n") if not line.isascii()]
                return b"\n".join(foreign[:200]) or b"?"
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

    page = BeautifulSoup(file.read_bytes(), "html.parser")
    main = page.main or page.find(attrs={"role": "main"}) or page.body or page
    long = len(main.get_text())
    for tag in [*main.select(NO_TEXT), *main.find_all(_is_menu)]:
        if not tag.decomposed and (tag.name in ("script", "style") or 2 * len(tag.get_text()) < long):
            tag.decompose()
    title = "" if main.find(["h1", "h2"]) or not page.title else f"# {' '.join(page.title.get_text().split())}\n\n"
    return title + _markdown(main)


def _is_menu(tag: Tag) -> bool:
    names = " ".join([*tag.get_attribute_list("class"), *tag.get_attribute_list("id"), tag.name])
    return bool(_MENU.search(names) or (_EDGE.search(names) and not tag.find(["h1", "h2", "h3"])))


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
    escapes = dict.fromkeys(("escape_asterisks", "escape_underscores"), False)
    return MarkdownConverter(heading_style=ATX, bullets="-", strip=plain, **escapes).convert_soup(page)


def _pdf_pages(file: Path) -> list[str]:
    """Return the text of each page. A line that the outline names, or in larger letters than most, is a heading."""
    from pypdfium2 import PdfDocument, PdfiumError

    try:
        pdf = PdfDocument(file)
    except PdfiumError as error:
        what = str(error).removeprefix("Failed to load document ")
        raise LBRError("is protected by a password" if "assword" in what else f"is no PDF {what}") from error
    with closing(pdf):
        marks = [(mark.get_dest(), mark.get_title(), min(6, mark.level + 1)) for mark in pdf.get_toc()]
        named = {(place.get_index(), normalise(title)): level for place, title, level in marks if place}
        pages = [_sized_lines(page.get_textpage()) for page in pdf]
    letters: Counter[float] = Counter()
    for line, size in chain(*pages):
        letters[size] += len(line)
    usual = max(letters, key=lambda size: letters[size], default=0.0)
    larger = sorted((size for size in letters if size > LARGER * usual), reverse=True)
    made: list[list[str]] = [[] for _ in pages]
    for number, page in enumerate(pages):
        before = 0
        for line, size in page:
            heading = size > LARGER * usual and 3 <= sum(map(str.isalpha, line)) and len(line) <= 120 and line[-1:] not in ".,;"
            level = named.get((number, normalise(line))) or (min(4, larger.index(size) + 1) if heading else 0)
            if level and level == before:
                made[number][-1] += f" {line.strip()}"  # a heading of two lines
            else:
                start = f"{'#' * level} " if level else "\\" * line.startswith("#")
                made[number].append(start + line.replace("\ufffe", "-\n"))
            before = level
    return ["\n".join(page) for page in made]


def _sized_lines(text: PdfTextPage) -> list[tuple[str, float]]:
    """Return a page's lines, each with the size of its first letter; 0 if it has none."""
    from pypdfium2 import raw

    lines, place, matrix = [], 0, raw.FS_MATRIX()
    for line in text.get_text_range().split("\r\n"):
        size = 0.0
        if letter := re.search(r"[^\W\d_]", line):
            at = raw.FPDFText_GetCharIndexFromTextIndex(text, place + letter.start())
            raw.FPDFText_GetMatrix(text, at, matrix)
            size = round(raw.FPDFText_GetFontSize(text, at) * math.hypot(matrix.c, matrix.d), 1)
        lines.append((line, size))
        place += len(line) + 2
    return lines


def _files(path: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
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
                yield from _files(item, above | {path.resolve()})


def _holds_pairs(file: Path) -> bool:
    try:
        return kind_of(file) in READABLE and _has(_names(file), query="query", document="document")
    except (LBRError, OSError):
        return False  # what is wrong with it is said when it is read


def _has(names: Sequence[str], **columns: str) -> bool:
    try:
        find_columns(names, "", **columns)
    except LBRError as error:
        return not isinstance(error, BadRow)  # several may be what is looked for
    return True


def _names(file: Path) -> list[str]:
    """Return the columns of a table."""
    names: list[str] = []

    def keep(given: Sequence[str], _: str) -> Columns:
        names.extend(given)
        return {}

    first = next(_records(file, "", Rows(file.name, keep, "skip", notice)), None)
    return names or list(first[1] if first else ())


def _reason(error: Exception, file: Path) -> str:
    if isinstance(error, LBRError):
        place = (error.where or "").removeprefix(str(file)).lstrip(", ")
        what = error.what.rstrip(".")
        return f"cannot be read ({f'{place}: ' * bool(place)}{what})" if error.where else what
    what = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".partition("\n")[0][:100]
    return f"cannot be read ({what})"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(6)) + ", …" * (len(counts) > 6)
