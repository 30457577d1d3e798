"""One line of progress with the time left, on the terminal and never in an executed notebook."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from tqdm import tqdm

# The runner names a file here and copies what is written to it to its own terminal.
PROGRESS_FILE = "MULTISHIELD_PROGRESS"


def progress(
    items: Iterable | None, description: str, unit: str, total: int | None = None, done: int = 0, scaled: bool = False
) -> tqdm:
    """Iterate over `items` and show how far it is.

    Args:
        items: what to iterate over; None for a bar that is moved by its `update`.
        description: the task, for example "training standard".
        unit: what is counted, for example "epoch".
        total: the length of `items`, where it has none.
        done: how much of it a run before this one has done.
        scaled: show counts as 1.2k, 3.4M: for bytes.

    Returns:
        The tqdm iterator; `set_postfix_str` adds a figure to the line.
    """
    name = os.environ.get(PROGRESS_FILE)
    stream = open(name, "a", buffering=1, encoding="utf-8") if name else sys.stderr  # noqa: SIM115 - tqdm keeps it open
    terminal = bool(name and os.environ.get("MULTISHIELD_TERMINAL")) or stream.isatty()
    return tqdm(
        items,
        desc=description,
        unit=unit,
        unit_scale=scaled,
        total=total,
        initial=done,
        file=stream,
        ncols=100,
        mininterval=0.5 if terminal else 20,
        maxinterval=1 if terminal else 60,
        leave=True,
    )


@contextmanager
def aside() -> Iterator[None]:
    """Send what other packages print (the bars of their downloads) to where progress goes, not into the notebook."""
    name = os.environ.get(PROGRESS_FILE)
    if not name:
        with redirect_stdout(sys.stderr):
            yield
        return
    with open(name, "a", buffering=1, encoding="utf-8") as stream, redirect_stdout(stream), redirect_stderr(stream):
        yield
