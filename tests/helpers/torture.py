"""Interrupt a tiny run again and again, at random points, and let it continue; run by test_damage.py as a program.

Every attempt is a fork. Half are killed at a random file operation, half get a signal after a random time.
"""

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from lbr_st import pipeline
from lbr_st.errors import INTERRUPTED, exit_status
from lbr_st.recipe import load_recipe

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FILE_OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "os.truncate")


def attempt(recipe, output, *, at_operation=None, after=None, number=signal.SIGKILL):
    """Run in a fork; return how it ended (True, or the signal or status), how long it took, and its file operations."""
    read, write = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            log = os.open(f"{output}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            count = 0

            def watch(event, arguments):
                nonlocal count
                if event in FILE_OPERATIONS:
                    count += 1
                    if count == at_operation:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(watch)
            status = exit_status(lambda: pipeline.run(recipe, output) and None)
            os.write(write, str(count).encode())
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        elapsed = time.monotonic() - start
        if done:
            break
        if after is not None and elapsed > after:
            os.kill(pid, number)
            after = None
        time.sleep(0.001)
    with os.fdopen(read) as pipe:
        operations = int(pipe.read() or 0)
    ended = True if status == 0 else (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
    return ended, elapsed, operations


def files_of(folder):
    """Return a release's files by name; of its card all but the folder's name, of its origin all but the revision."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files["README.md"] = files["README.md"].replace(f'("{folder.name}")'.encode(), b"")
    files["provenance.json"] = {**json.loads(files["provenance.json"]), "git_revision": None}
    return files


def main(recipe_file, folder, kills, seed):
    torch.set_num_threads(1)
    pipeline._plot = lambda work: None  # drawn after the release, and a third of the time
    gc.freeze()
    folder, recipe = Path(folder), load_recipe(recipe_file)
    whole, seconds, operations = attempt(recipe, folder / "whole")
    assert whole is True, (folder / "whole.log").read_text()
    expected = files_of(folder / "whole")
    chance = random.Random(seed)
    killed, completed, faults = 0, 0, []
    while killed < kills:
        output = folder / f"run{completed}"
        if chance.random() < 0.5:
            point = {"at_operation": chance.randrange(1, operations + 1)}
        else:
            point = {"after": chance.uniform(0, seconds), "number": chance.choice(SIGNALS)}
        ended, _, _ = attempt(recipe, output, **point)
        if ended not in (True, -signal.SIGKILL, INTERRUPTED):
            faults.append(f"{output.name}, {point}: status {ended}: {Path(f'{output}.log').read_text()[-2000:]}")
            break
        killed += ended is not True
        if output.exists():  # whole, even where the kill came after it
            completed += 1
            faults += check(output, expected, ended is True)
    output = folder / f"run{completed}"
    if not output.exists() and not faults:
        ended, _, _ = attempt(recipe, output)
        completed += 1
        faults += check(output, expected, True) if ended is True else [f"the last one ended with {ended}"]
    print(json.dumps({"killed": killed, "completed": completed, "seconds": seconds, "faults": faults}))


def check(output, expected, ended):
    """Return what differs from the run that nothing interrupted, and what a run that ended left lying about."""
    found = files_of(output)
    faults = [
        f"{output.name}: {name} differs"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    work = output.with_name(f"{output.name}-work")
    left = [*output.parent.glob(f".{output.name}*"), *work.rglob(".*"), *work.glob("*-checkpoints")]
    return faults + [f"{path.name} was left" for path in left if ended]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
