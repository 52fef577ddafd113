"""The exception for mistakes that a user can fix, and the one for a run that was interrupted."""

from __future__ import annotations


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
        return (_rebuild, (self.what, self.where, self.fix))


def _rebuild(what: str, where: str | None, fix: str | None) -> LBRError:
    return LBRError(what, where=where, fix=fix)


class Interrupted(KeyboardInterrupt):
    """The user, or a scheduler by SIGTERM, ended a run: says what was kept and how to resume.

    Derives from :class:`KeyboardInterrupt` so that ``except Exception`` does not swallow it.
    """
