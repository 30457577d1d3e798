"""State of long computations: a killed run goes on where it was and ends with the same bytes (on a CPU)."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from multishield.storage import paths
from multishield.storage.files import fingerprint, load_tensors, save_tensors
from multishield.storage.progress import progress

# The runner names the stage here, for the kernel that executes its notebook.
RUN = "MULTISHIELD_RUN"


@contextmanager
def resume_folder(task: str, *inputs) -> Iterator[Path]:
    """A folder under `.multishield/` named by the task and a fingerprint of all its inputs.

    It survives a kill or an error. It is removed when the stage that it belongs to ends well (by the runner, which
    names the stage in RUN; without a runner when the block ends), so that `dvc repro --force` computes everything anew
    instead of reading back what it is meant to check.
    """
    stage = os.environ.get(RUN)
    folder = paths.state("resume", *([stage] if stage else []), f"{task}-{fingerprint(*inputs)}")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    if not stage:
        shutil.rmtree(folder)


def forget(stage: str) -> None:
    """Remove what a stage has kept."""
    shutil.rmtree(paths.state("resume", stage), ignore_errors=True)


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
