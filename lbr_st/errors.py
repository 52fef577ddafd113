"""What a person sees when something goes wrong: errors that say what to do, interruptions, and the exit status."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from types import FrameType

USER_ERROR, USAGE, INTERRUPTED = 1, 2, 130


class LBRError(ValueError):
    """A mistake in what the user gave. The message says what is wrong, where, and what to do about it.

    Args:
        what: What is wrong, with the offending value.
        where: The file, line, key or row it was found in. Optional.
        fix: What to do about it. Optional.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        message = f"{where}: {what}" if where else what
        if fix and message[-1:] not in tuple(".!?…"):  # what another library says often ends without
            message += "."
        super().__init__(f"{message} {fix}" if fix else message)

    def within(self, place: str) -> LBRError:
        """Return the same error with a place before its own: of a key, the file that it stands in."""
        return LBRError(self.what, where=f"{place}: {self.where}" if self.where else place, fix=self.fix)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle through the keyword arguments (datasets sends errors between processes)."""
        return partial(LBRError, where=self.where, fix=self.fix), (self.what,)


class UsageError(LBRError):
    """A mistake in how a command is called."""

    def __init__(self, what: str, fix: str | None = None, command: str = "") -> None:
        super().__init__(what, fix=fix)
        self.hint = f"Try 'lbr-st {command}{' ' if command else ''}--help'."


class Interrupted(KeyboardInterrupt):
    """The user, or a scheduler by SIGTERM, ended a run: says what was kept and how to resume.

    Derives from :class:`KeyboardInterrupt` so that ``except Exception`` does not swallow it.
    """


def exit_status(work: Callable[[], object], *, debug: bool = False) -> int:
    """Run a command's work and return the exit status, with a line on standard error unless all went well.

    SIGTERM, which schedulers send, ends it as Ctrl-C does.

    Args:
        work: Does the work.
        debug: Print the traceback of a user's error too. A defect of ours always has one.

    Returns:
        0; 1 for an error that the user can fix; 2 for wrong usage; 130 when interrupted.
    """
    # Every model has a default prompt, and Sentence Transformers warns of it whenever one is loaded.
    told = logging.getLogger("sentence_transformers.base.model")
    told.addFilter(lambda record: "Default prompt name" not in record.getMessage())
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    try:
        work()
        return 0
    except KeyboardInterrupt as interruption:
        if debug:
            traceback.print_exception(interruption)
        print(f"interrupted: {str(interruption) or 'run the same command again to continue.'}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        known = error if isinstance(error, LBRError) else _of_the_machine(error)
        if known is None:
            raise
        if debug:
            traceback.print_exception(error)
        print(f"error: {known}", file=sys.stderr)
        if not isinstance(known, UsageError):
            return USER_ERROR
        print(known.hint, file=sys.stderr)
        return USAGE
    finally:
        _flush()
        if main:
            signal.signal(signal.SIGTERM, before)


def _of_the_machine(error: Exception) -> LBRError | None:
    """Put an error of memory, files or the disk in words; None if it is a defect of ours."""
    if isinstance(error, BrokenPipeError):
        fix = "Write it to a file, or read it all."
        return LBRError("nothing reads the output any more.", where="standard output", fix=fix)
    chain: list[BaseException] = [error]  # safetensors, torch and datasets wrap the system's error in their own types
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    causes = [cause for cause in chain if isinstance(cause, OSError)]
    where = next((str(cause.filename) for cause in causes if cause.filename is not None), None)
    full = any(cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in causes)
    # torch.save says the last two of these, without the system's error.
    signs = ("No space left on device", "unexpected pos", "iostream error")
    if full or any(sign in str(cause) for cause in chain for sign in signs):
        fix = "Nothing was left half-written. Free some space and run again."
        return LBRError("the disk is full.", where=where, fix=fix)
    refused = [cause for cause in causes if cause.errno in (errno.EROFS, errno.EACCES, errno.EPERM)]
    if refused or (isinstance(error, OSError) and where and error.strerror):
        fix = "Check that the path is right, is a file or a folder as needed, and that you may use it."
        return LBRError(f"cannot be used: {(refused or causes)[0].strerror}.", where=where, fix=fix)
    # torch has an error for a GPU's memory, and a sentence for a CPU's.
    short = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAll" in str(error)
    if not (short or isinstance(error, MemoryError)):
        return None
    first = str(error).partition("\n")[0] or "RAM"
    fix = "Lower learn.batch_tokens, represent.mini_batch_tokens or evaluate.batch_size, or use a smaller base."
    return LBRError(f"out of memory: {first.rstrip('.')}.", fix=fix)


def _flush() -> None:
    """Write the rest of the output. Python would end with a traceback if nobody reads it any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Interrupted("by SIGTERM; run the same command again to continue.")
