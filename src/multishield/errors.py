"""The one error that users see, and the words of its sentences."""

import difflib
from pathlib import Path


class UserError(Exception):
    """Bad input. The message is one sentence: what was given, what is accepted, how to mend it."""


def in_words(error: Exception) -> str:
    """An error as a sentence: a `UserError` is one; an OSError gets its file and a remedy."""
    if not isinstance(error, OSError):
        return str(error)
    name, reason = error.filename or "a file", error.strerror or error
    disk = next((p for p in Path(name).absolute().parents if p.is_mount()), Path("/"))
    return f"{name}: {reason}; make room on its disk ({disk}), make it readable and writable, or remove it"


def closest(name: str, known, listing: str) -> str:
    """The end of a sentence about an unknown name: close matches, or else `listing`, which says where names are."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else listing


def reason_of(error: Exception) -> str:
    """The text of an error in one line of at most 200 characters; its type where it has no text."""
    return " ".join(str(error).split())[:200] or type(error).__name__
