"""The one error that users see, and how its sentences end."""

import difflib


class UserError(Exception):
    """Bad input. The message is one sentence: what was given, what is accepted, how to mend it.

    The command line prints the message without a traceback and exits with code 1.
    """


def closest(name: str, known, listing: str) -> str:
    """The end of a sentence about an unknown name: close matches, or else `listing`, which says where names are."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else listing
