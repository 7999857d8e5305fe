"""Errors that are the user's to mend: one clear line that names the bad thing and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The launcher prints the message of such an error without a traceback and exits with 1."""

    is_user_error = True


def is_user_error(error: BaseException) -> bool:
    """True for UserError and for the like-minded classes of plugins, which share only the attribute."""
    return bool(getattr(error, "is_user_error", False))


def did_you_mean(name: str, valid: Iterable[str], n: int = 3) -> str:
    """A tail for an error message: the valid names nearest to a wrong one, or all of a short list."""
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=n, cutoff=0.5)
    if near:
        return "; did you mean " + " or ".join(near) + "?"
    if 0 < len(valid) <= 12:
        return "; known: " + ", ".join(sorted(valid))
    return ""


class NotFinite(UserError):
    """The loss or a gradient became NaN or infinite; raised before it can reach the weights."""


class Interrupted(UserError):
    """The user, or the system, asked the run to end; `halfway` if inside a step, whose state is good for nothing."""

    def __init__(self, message: str, halfway: bool = False) -> None:
        super().__init__(message)
        self.halfway = halfway
