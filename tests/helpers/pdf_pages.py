"""Small PDF files, written by hand: pages of lines, each with a size."""

from collections.abc import Sequence

Line = str | tuple[str, int]


def pdf_of(pages: Sequence[Sequence[Line]], *, ligatures: bool = False) -> bytes:
    """Return a PDF in Helvetica. With ``ligatures`` its font has signs of its own for "fi" and "ff", as TeX's have."""
    encoding = "/WinAnsiEncoding"
    if ligatures:
        encoding = "<< /BaseEncoding /WinAnsiEncoding /Differences [1 /fi /ff] >>"
    font = f"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding {encoding} >>"
    numbers = [4 + 2 * number for number in range(len(pages))]
    kids = " ".join(f"{number} 0 R" for number in numbers)
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>", font]
    for number, page in zip(numbers, pages, strict=True):
        stream = _stream(page, ligatures)
        use = f"/Resources << /Font << /F 3 0 R >> >> /Contents {number + 1} 0 R"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] {use} >>")
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    written, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(written))
        written += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    count = len(objects) + 1
    end = f"trailer\n<< /Size {count} /Root 1 0 R >>\nstartxref\n{len(written)}\n%%EOF\n"
    return f"{written}xref\n0 {count}\n0000000000 65535 f \n{table}{end}".encode("latin-1")


def _stream(page: Sequence[Line], ligatures: bool) -> str:
    parts, height = [], 800
    for line in page:
        text, size = (line, 10) if isinstance(line, str) else line
        if ligatures:
            text = text.replace("ff", "\x02").replace("fi", "\x01")
        shown = "".join(f"\\{ord(sign):03o}" if sign in "()\\" or ord(sign) < 32 else sign for sign in text)
        parts.append(f"BT /F {size} Tf 50 {height} Td ({shown}) Tj ET")
        height -= 2 * size
    return "\n".join(parts)
