"""The one error that users see."""


class UserError(Exception):
    """Bad input. The message is one sentence: what was given, what is accepted, how to mend it.

    The command line prints the message without a traceback and exits with code 1.
    """
