"""Run a tiny recipe on disks too small or read-only; run by test_damage.py, in a mount namespace of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch

from lbr_st import pipeline
from lbr_st.recipe import load_recipe


def mount(folder, options):
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    return folder


def said(recipe, output):
    """Run; return what the error says, "" if there is none."""
    try:
        pipeline.run(recipe, output)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def partial_release(release, disk):
    """Fill the disk, but for a few blocks, before the release begins; the stages need more room than it does."""

    def wrapped(*args, **kwargs):
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        with (disk / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - 64 * 1024)
        try:
            return release(*args, **kwargs)
        finally:
            (disk / "filler").unlink()

    return wrapped


def main(recipe_file, folder):
    torch.set_num_threads(1)
    pipeline._plot = lambda work: None
    recipe, folder = load_recipe(recipe_file), Path(folder)
    disk = mount(folder / "whole", "size=200m")
    assert said(recipe, disk / "out") == ""
    expected = (disk / "out" / "model.safetensors").read_bytes()
    used = sum(path.stat().st_blocks * 512 for path in disk.rglob("*"))
    found = []
    for share in (0.02, 0.15, 0.3, 0.6, 0.9, 1.1, "release"):
        disk = mount(folder / str(share), "size=200m" if share == "release" else f"size={int(used * share)}")
        if share == "release":
            with mock.patch.object(pipeline, "stock_form", partial_release(pipeline.stock_form, disk)):
                error = said(recipe, disk / "out")
        else:
            error = said(recipe, disk / "out")
        partial = (disk / "out").exists() or any(disk.glob(".out.*.partial"))
        mount(disk, "remount,size=200m")
        again = said(recipe, disk / "out")
        same = (disk / "out" / "model.safetensors").read_bytes() == expected
        found.append({"share": share, "error": error, "partial": partial, "again": again, "same": same})
    mount(disk, "remount,ro")
    found.append({"share": "read-only", "error": said(recipe, disk / "other")})
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
