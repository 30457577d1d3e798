"""State of long computations: a killed run goes on where it was and ends with the same bytes."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from multishield import paths
from multishield.files import fingerprint, load_tensors, save_tensors
from multishield.progress import progress


@contextmanager
def resume_folder(task: str, *inputs) -> Iterator[Path]:
    """A folder under `.multishield/` named by the task and a fingerprint of all its inputs.

    It survives a kill or an error. It is removed when the block ends well, so that `dvc repro --force`
    computes everything anew instead of reading back what it is meant to check.
    """
    folder = paths.state("resume", f"{task}-{fingerprint(*inputs)}")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder)


def in_chunks(
    task: str, compute: Callable[[slice], dict[str, torch.Tensor]], total: int, size: int, *inputs
) -> dict[str, torch.Tensor]:
    """Compute `total` rows in chunks of `size`, each kept on disk as soon as it is there, and join them.

    Args:
        task: a name for the progress line and the folder.
        compute: gets the slice of a chunk, returns named tensors whose first axis is the chunk's rows.
        inputs: everything the result depends on (see `fingerprint`).

    Returns:
        The named tensors, joined over all rows.
    """
    slices = [slice(start, min(start + size, total)) for start in range(0, total, size)]
    parts = []
    with resume_folder(task, total, size, *inputs) as folder:
        for part in progress(slices, task, "batch"):
            path = folder / f"{part.start:06d}.safetensors"
            if not path.exists():
                save_tensors(path, compute(part))
            parts.append(load_tensors(path))
        return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
