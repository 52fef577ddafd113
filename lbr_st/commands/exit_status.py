"""What a person sees when a command ends early: a line that says what to do, and an exit status."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType

from lbr_st.errors import Interrupted, LBRError

USER_ERROR, USAGE, INTERRUPTED = 1, 2, 130


def exit_status(work: Callable[[], int | None], *, debug: bool = False) -> int:
    """Run a command's work and return the exit status, with a line on standard error unless all went well.

    SIGTERM, which schedulers send, ends it as Ctrl-C does.

    Args:
        work: Does the work; may return a status of its own.
        debug: Print the traceback of a user's error, too. An error of ours always has one.

    Returns:
        What ``work`` returned or 0; 1 for an error that the user can mend; 130 when interrupted.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    try:
        return work() or 0
    except LBRError as error:
        return _explain(error, error, debug)
    except KeyboardInterrupt as interruption:
        if debug:
            traceback.print_exception(interruption)
        said = interruption if str(interruption) else Interrupted("run the same command again to continue.")
        print(f"interrupted: {said}", file=sys.stderr)
        return INTERRUPTED
    except (MemoryError, RuntimeError, OSError) as error:
        known = _known(error)
        if known is None:
            raise
        return _explain(error, known, debug)
    finally:
        _flush()
        if main:
            signal.signal(signal.SIGTERM, before)


def _known(error: Exception) -> LBRError | None:
    """Return an error of the machine as one of ours: memory, files, and a reader that went away."""
    if isinstance(error, BrokenPipeError):
        return LBRError(
            "nothing reads the output any more.", where="standard output", fix="Write it to a file, or read it all."
        )
    if isinstance(error, OSError):
        if error.filename is None or error.strerror is None:
            return None
        fix = "Check that this path is right, a file or a folder as is needed there, and that you may use it."
        return LBRError(f"cannot be used: {error.strerror}.", where=str(error.filename), fix=fix)
    if not _is_out_of_memory(error):
        return None
    first = str(error).splitlines()[0] if str(error) else "RAM"
    fix = "Lower learn.batch_tokens, represent.mini_batch_tokens or evaluate.batch_size, or use a smaller base."
    return LBRError(f"out of memory: {first.rstrip('.')}.", fix=fix)


def _explain(error: Exception, known: LBRError, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"error: {known}", file=sys.stderr)
    return USER_ERROR


def _flush() -> None:
    """Write what is left of the output; Python would print a traceback at its end if nobody reads it any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Interrupted("by SIGTERM; run the same command again to continue.")


def _is_out_of_memory(error: Exception) -> bool:
    """Tell torch's two ways of saying so, of a GPU's memory and of a CPU's, without importing torch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAll" in str(error)
