"""Crafted archives: nothing leaves its folder, fills the disk or is kept when something in it is wrong."""

import io
import stat
import struct
import warnings
import zipfile

import pytest

from lbr_st import archives
from lbr_st.archives import unpack_zip
from lbr_st.bases import BASES
from lbr_st.domains import definitions, python_docs
from lbr_st.errors import LBRError
from lbr_st.export import environments


def archive(tmp_path, *members, compression=zipfile.ZIP_DEFLATED):
    """Write an archive next to a folder that nothing may get into."""
    path = tmp_path / "thing.whl"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as file:
        warnings.simplefilter("ignore")  # zipfile warns of names that come twice
        for member, content in members:
            file.writestr(member, content)
    return path


def of_kind(kind, name="odd"):
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o777) << 16
    return member


def unpack(tmp_path, path):
    target = tmp_path / "inside" / "target"
    target.mkdir(parents=True)
    unpack_zip(path, target)
    return target


def refused(tmp_path, path, match):
    with pytest.raises(LBRError, match=match) as caught:
        unpack(tmp_path, path)
    assert caught.value.where == "thing.whl"
    assert {item.name for item in tmp_path.iterdir()} == {"thing.whl", "inside"}
    assert [item.name for item in (tmp_path / "inside").iterdir()] == ["target"]


def test_an_ordinary_archive_is_unpacked_and_one_inside_of_it_stays_one(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb", b"\0" * 10_000_000)
    path = archive(
        tmp_path,
        ("a/b.txt", "x"),
        (of_kind(stat.S_IFDIR, "c/"), ""),
        (of_kind(stat.S_IFREG, "d"), "y"),
        ("e.zip", inner.getvalue()),
    )
    target = unpack(tmp_path, path)
    assert (target / "a" / "b.txt").read_text() == "x"
    assert (target / "e.zip").stat().st_size < 20_000
    assert {file.name for file in target.iterdir()} == {"a", "c", "d", "e.zip"}


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/x", "//x", "C:/x", "C:x", "\\\\server\\x", "..\\x", "a\\..\\..\\x", "\\x", "a/..", ".."],
)
def test_no_name_leads_out(tmp_path, name):
    refused(tmp_path, archive(tmp_path, ("fine", "x"), (name, "x")), "would leave the folder")
    assert list((tmp_path / "inside" / "target").iterdir()) == []


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_no_member_is_a_link_or_a_device(tmp_path, kind):
    refused(tmp_path, archive(tmp_path, (of_kind(kind), "/etc/passwd")), "'odd' would leave")


@pytest.mark.parametrize("name", ["a", "./a", "b//../a"])
def test_no_member_comes_twice(tmp_path, name):
    what = "would leave" if ".." in name else "comes twice"
    refused(tmp_path, archive(tmp_path, ("a", "x"), (name, "y")), what)


def test_no_member_is_a_file_and_a_folder(tmp_path):
    refused(tmp_path, archive(tmp_path, ("a", "x"), ("a/b", "y")), "a file and a folder")


def test_a_bomb_of_one_member_is_refused_before_a_byte_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_BYTES", 1_000_000)
    path = archive(tmp_path, ("small", "x"), ("bomb", b"\0" * 2_000_000))
    assert path.stat().st_size < 5_000
    refused(tmp_path, path, "more than 1,000,000")
    assert list((tmp_path / "inside" / "target").iterdir()) == []


def test_a_bomb_of_many_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_BYTES", 1_000_000)
    refused(tmp_path, archive(tmp_path, *((f"{i}", b"\0" * 100_000) for i in range(11))), "1,100,000 bytes")


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 100)
    refused(tmp_path, archive(tmp_path, *((f"{i}", "") for i in range(101))), "101 members")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_lies_about_its_size_writes_no_more_than_it_says(tmp_path, compression):
    path = archive(tmp_path, ("bomb", b"\0" * 5_000_000), compression=compression)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(signature) + offset, 1000)
    path.write_bytes(data)
    refused(tmp_path, path, "not a readable wheel")
    written = sum(file.stat().st_size for file in (tmp_path / "inside").rglob("*") if file.is_file())
    assert written <= 1000


def test_members_that_share_their_bytes_count_each(tmp_path, monkeypatch):
    """The bomb of overlapping members: each entry of the list points to the same compressed bytes."""
    monkeypatch.setattr(archives, "MOST_BYTES", 1_000_000)
    path = archive(tmp_path, ("0000", b"\0" * 400_000))
    data = path.read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry = data[start:end]
    entries = b"".join(entry.replace(b"0000", f"{number:04}".encode()) for number in range(50))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 50, 50, len(entries), start, 0)
    path.write_bytes(data[:start] + entries + tail)
    refused(tmp_path, path, "20,000,000 bytes")


def test_an_encrypted_member_is_refused(tmp_path):
    path = archive(tmp_path, ("a", "x"))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    refused(tmp_path, path, "encrypted")


@pytest.mark.parametrize("damage", ["cut", "garbled", "empty", "method"])
def test_a_damaged_archive_is_refused(tmp_path, damage):
    path = archive(tmp_path, ("a", bytes(range(256)) * 50))
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "garbled":
        data[60:80] = b"\xff" * 20
    elif damage == "empty":
        data = bytearray()
    else:
        for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            data[data.index(signature) + offset] = 97
    path.write_bytes(data)
    refused(tmp_path, path, "not a readable wheel")


def test_every_download_is_pinned():
    wheels = [definitions.WHEEL, *((base.requirement, base.wheel, base.sha256) for base in BASES.values())]
    packages = (*python_docs.EVALUATION_PACKAGES, *python_docs.TRAINING_PACKAGES)
    wheels += [(f"{one.name}=={one.version}", one.name, one.sha256) for one in packages]
    for requirement, _, sha256 in wheels:
        assert requirement.count("==") == 1
        assert not set(requirement.partition("==")[2]) & set("*<>,~")
        assert len(sha256) == 64
        assert int(sha256, 16)


@pytest.mark.parametrize("backend", environments.UNWANTED)
def test_every_requirement_of_an_export_environment_is_pinned(backend):
    lines = [line for line in environments.requirements(backend).splitlines() if line and not line.startswith("#")]
    assert len(lines) > 4
    for line in lines:
        name, _, version = line.partition("==")
        assert name
        assert version.replace(".", "").isdigit(), line
