"""Checkpoints of long computations: a killed run goes on where it was and ends with the same bytes (on a CPU).

The one mechanism of resume: training keeps its last epoch here, attacks the images that are finished, the baseline its
batches, text embeddings their blocks.
"""

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from multishield.files import write_atomically
from multishield.tensors import fingerprint
from paper import paths


class Checkpoint:
    """What one computation has finished: values by name, each a file with a checksum.

    A value is what `torch.load(weights_only=True)` reads: tensors, numbers, texts, lists and dicts of them. A file that
    is damaged counts as missing, and is computed again.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def put(self, name: str, value) -> None:
        """Keep a value; it replaces one of the same name."""
        buffer = io.BytesIO()
        torch.save(value, buffer)
        payload = buffer.getvalue()
        write_atomically(self.folder / name, lambda p: p.write_bytes(hashlib.sha256(payload).digest() + payload))

    def get(self, name: str):
        """The value of a name, or None."""
        path = self.folder / name
        if not path.is_file():
            return None
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            path.unlink()
            return None
        return torch.load(io.BytesIO(content[32:]), weights_only=True)

    def values(self) -> list:
        """All values, in the order of their names."""
        found = (self.get(path.name) for path in sorted(self.folder.iterdir()) if not path.name.startswith("."))
        return [value for value in found if value is not None]


# Where checkpoints are kept outside the pipeline, see `kept_in`.
_KEPT_IN: ContextVar[Path | None] = ContextVar("kept_in", default=None)


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Keep the checkpoints of several computations in a folder until all have ended well; None: in a temporary one.

    Where the runner has named a stage, that one keeps them.
    """
    if os.environ.get(paths.RUN):
        yield
        return
    where = folder or Path(tempfile.mkdtemp())
    token = _KEPT_IN.set(where)
    try:
        yield
    finally:
        _KEPT_IN.reset(token)
        if folder is None:
            shutil.rmtree(where)
    if folder is not None:
        shutil.rmtree(where, ignore_errors=True)


@contextmanager
def checkpoint(task: str, *inputs) -> Iterator[Checkpoint]:
    """The checkpoint of a task, in a folder under `.multishield/` named by a fingerprint of all its inputs.

    It survives a kill or an error. It is removed when the stage that it belongs to ends well (by the runner, which
    names the stage in RUN; without a runner when the block ends), so that `dvc repro --force` computes everything anew
    instead of reading back what it is meant to check.
    """
    stage, outside = os.environ.get(paths.RUN), _KEPT_IN.get()
    place = outside or paths.state("resume", *([stage] if stage else []))
    folder = place / f"{task}-{fingerprint(*inputs)}"
    folder.mkdir(parents=True, exist_ok=True)
    yield Checkpoint(folder)
    if not stage and not outside:
        shutil.rmtree(folder)
