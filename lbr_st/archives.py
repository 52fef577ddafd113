"""Unpacking a zip archive (a wheel is one) so that nothing of it leaves its folder or fills the disk."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from lbr_st.errors import LBRError

MOST_BYTES = 4 << 30
"""Of an archive's members together, unpacked. The largest that lbr-st fetches has a hundred megabytes."""
MOST_MEMBERS = 50_000
"""Of an archive. The largest that lbr-st fetches has four thousand."""


def unpack_zip(archive: Path, folder: Path) -> None:
    """Unpack a zip archive into an empty folder, every member of it checked before the first is written.

    An archive inside of it stays one. Sizes are those that the archive declares: :mod:`zipfile` reads no more than
    that of any member, and fails on its checksum where there would be more.

    Args:
        archive: The file.
        folder: Where its members go.

    Raises:
        LBRError: It is no zip file or a damaged one; a member would leave the folder, is a link or a device, is
            encrypted, or comes twice; or it has too many members or bytes.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            _check_all(members, archive.name)
            opened.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise LBRError(f"not a readable wheel: {error}.", where=archive.name, fix="Check your pip mirror.") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _untrusted("a member is a file and a folder at once", archive.name) from error


def _check_all(members: list[zipfile.ZipInfo], archive: str) -> None:
    if len(members) > MOST_MEMBERS:
        raise _untrusted(f"{len(members):,} members are more than {MOST_MEMBERS:,}", archive)
    total = sum(member.file_size for member in members)
    if total > MOST_BYTES:
        raise _untrusted(f"it would unpack to {total:,} bytes, more than {MOST_BYTES:,}", archive)
    seen: set[PurePosixPath] = set()
    for member in members:
        if _escapes(member):
            raise _untrusted(f"the member {member.filename!r} would leave the folder it is unpacked into", archive)
        if member.flag_bits & 1:
            raise _untrusted(f"the member {member.filename!r} is encrypted", archive)
        path = PurePosixPath(member.filename)
        if path in seen:
            raise _untrusted(f"the member {member.filename!r} comes twice", archive)
        seen.add(path)


def _untrusted(what: str, archive: str) -> LBRError:
    return LBRError(f"{what}.", where=archive, fix="The wheel is not to be trusted; nothing was kept.")


def _escapes(member: zipfile.ZipInfo) -> bool:
    """Whether a member is a link or a device, has an absolute name, or climbs out by ``..`` (on any system)."""
    windows = PureWindowsPath(member.filename)
    absolute = PurePosixPath(member.filename).is_absolute() or bool(windows.drive or windows.root)
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was made on Windows
    return absolute or ".." in windows.parts or kind not in (0, stat.S_IFREG, stat.S_IFDIR)
