"""One line of progress with the time left, on the terminal and never in an executed notebook."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from tqdm import tqdm

# The kernel of a stage keeps the terminal of its runner as the file descriptor of this number.
PROGRESS = "MULTISHIELD_PROGRESS"


def _stream():
    number = os.environ.get(PROGRESS)
    return open(int(number), "a", buffering=1, encoding="utf-8", closefd=False) if number else sys.stderr


def progress(items: Iterable | None, description: str, unit: str, total: int | None = None, done: int = 0) -> tqdm:
    """Iterate over `items` and show the progress, as a tqdm iterator; its `set_postfix_str` adds a figure to the line.

    Without items (None) the bar is moved by its `update`, and without a description, the task, nothing is shown. The
    unit is that of the count, `total` the length of items that have none; an earlier run has done the first `done`.
    """
    stream = _stream()
    often = {"mininterval": 0.5, "maxinterval": 1} if stream.isatty() else {"mininterval": 20, "maxinterval": 60}
    often |= {"ncols": 100, "disable": not description}
    return tqdm(items, desc=description, unit=unit, total=total, initial=done, file=stream, **often)


@contextmanager
def quiet() -> Iterator[None]:
    """Send the output of other packages (the bars of their downloads) to the progress lines, not into the notebook."""
    with redirect_stdout(_stream()) as stream, redirect_stderr(stream):
        yield
