"""Long computations that can be killed: finished results are on disk, and a new call computes the others."""

import ctypes
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from multishield.errors import UserError
from multishield.files import write_atomically, write_text
from multishield.images import AttackedImages, Images
from multishield.progress import progress

# Images of a piece, where pieces are computed elsewhere; seconds between two writings of finished images.
PIECE, EVERY = 128, 20.0
# How pieces are computed: `map`, or a function with its first two arguments that may return results in any order.
Each = Callable[[Callable, Iterable], Iterable]


def fingerprint(*values) -> str:
    """SHA-256 over tensors, modules (their state), and JSON values: 16 hex digits that name a computation."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.nn.Module):
            value = dict(sorted(value.state_dict().items()))
        if isinstance(value, dict) and all(isinstance(v, Tensor) for v in value.values()):
            for name, tensor in value.items():
                digest.update(f"{name}{fingerprint(tensor)}".encode())
        elif isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            digest.update(json.dumps(value, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def results_folder(save_to: Path | str, *inputs) -> Path:
    """A user's folder for the results of one computation of `inputs`; UserError for a file, or for other contents."""
    name = fingerprint(*inputs)
    try:
        mark = (folder := Path(save_to).expanduser()) / "inputs.txt"
        if any(folder.glob("[!.]*")) and not (mark.is_file() and mark.read_text() == name):
            raise UserError(f"save_to is {str(save_to)!r}, which holds other results or files; give an empty folder")
        write_text(mark, name)
    except (OSError, RuntimeError) as error:  # a home that nobody has is a RuntimeError
        raise UserError(f"save_to is {str(save_to)!r}, which is no folder to write to ({error}); give one") from None
    return folder


class Checkpoint:
    """The finished results of one computation: values by name, each a file with a checksum; None keeps nothing.

    A value is anything that `torch.load(weights_only=True)` reads: tensors, numbers, texts, lists and dicts of them. A
    damaged file counts as missing. The inputs are all that the results depend on, see `fingerprint`.
    """

    def __init__(self, folder: Path | None, task: str, *inputs):
        self.folder = folder and folder / f"{task.replace(' ', '-')}-{fingerprint(*inputs)}"

    def put(self, name: str, value) -> None:
        """Keep a value; it replaces one of the same name."""
        if self.folder:
            buffer = io.BytesIO()
            torch.save(value, buffer)
            payload = buffer.getvalue()
            write_atomically(self.folder / name, lambda p: p.write_bytes(hashlib.sha256(payload).digest() + payload))

    def get(self, name: str):
        """The value of a name, or None."""
        content = (self.folder / name).read_bytes() if self.folder and (self.folder / name).is_file() else b""
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            return None
        return torch.load(io.BytesIO(content[32:]), weights_only=True)

    def values(self) -> list:
        """All values, in the order of their names."""
        names = sorted(path.name for path in self.folder.glob("[!.]*")) if self.folder else []
        return [value for name in names if (value := self.get(name)) is not None]


def attack_resumably(
    task: str, attack: Callable, data: Images, starts: list, checkpoint: Checkpoint, each: Each = map
) -> AttackedImages:
    """Attack images; a killed call continues with the images that are left, and ends with the same bytes.

    The attack gets `Images`, their starts (`AttackedImages` of earlier attacks), and a `watch` (see
    `attacks.loop.Watch`) or None. The task is the text of the progress line; without it there is none.
    """
    finished, here = _Finished(task, checkpoint, len(data)), each is map
    left = finished.left.nonzero()[:, 0]
    indices = left.split(len(left) if here else PIECE) if len(left) else ()
    pieces = ((i, data[i], [start[i] for start in starts]) for i in indices)
    try:
        for index, attacked in each(partial(_attack_piece, attack, finished if here else None), pieces):
            if not here:
                finished.add(index, attacked, int(finished.left.sum()) - len(index))
                finished.write()
    finally:  # images since the last writing are finished, and the line ends before an error
        finished.write()
        finished.bar.close()
    index, attacked = zip(*finished.chunks, strict=True)
    return AttackedImages.joined(attacked)[torch.cat(index).argsort()]


def _attack_piece(attack: Callable, finished: "_Finished | None", piece: tuple) -> tuple[Tensor, AttackedImages]:
    """Attack one piece, here or in another process; `finished` learns of every image as soon as it is done."""
    index, data, starts = piece
    watch = finished and (lambda images, attacked, steps: finished.add(index[images], attacked, steps))
    return index, attack(data, starts, watch)


class _Finished:
    """The images of an attack that are finished, on disk and in memory, and one line of progress."""

    def __init__(self, task: str, checkpoint: Checkpoint, total: int):
        self.checkpoint, self.chunks, self.bar = checkpoint, [], progress(None, task, "step")
        self.left, self.broken = torch.ones(total, dtype=torch.bool), torch.zeros(total, dtype=torch.bool)
        for chunk in checkpoint.values():
            self._take(chunk["index"], AttackedImages.from_tensors(chunk))
        self.written, self.last = len(self.chunks), time.monotonic()

    def _take(self, index: Tensor, attacked: AttackedImages) -> None:
        self.chunks.append((index, attacked))
        self.left[index], self.broken[index] = False, attacked.success

    def add(self, index: Tensor, attacked: AttackedImages, steps_left: int) -> None:
        """Take in finished images. The line counts steps, because steps take time: a broken image returns its own."""
        if len(index):
            self._take(index, attacked)
        self.bar.total = max(self.bar.total or 0, steps_left)
        self.bar.update(self.bar.total - steps_left - self.bar.n)
        robust = 1 - int(self.broken.sum()) / len(self.broken)
        self.bar.set_postfix_str(f"{int(self.left.sum())} images left, robust so far {robust:.0%}", refresh=False)
        if time.monotonic() - self.last > EVERY:
            self.write()

    def write(self) -> None:
        """Write the images that are finished since the last writing, and give back freed memory that glibc keeps."""
        if waiting := self.chunks[self.written :]:
            indices, attacked = zip(*waiting, strict=True)
            chunk = AttackedImages.joined(attacked).tensors() | {"index": torch.cat(indices)}
            self.checkpoint.put(f"{int((~self.left).sum()):08d}", chunk)
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None:
            trim(0)
        self.written, self.last = len(self.chunks), time.monotonic()
