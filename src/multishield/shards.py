"""Attacked images on disk in shards: memory is bounded by a shard, however many images there are."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from multishield.files import missing
from multishield.images import AttackedImages, Split

# Bytes of a shard's images as float32: 44,000 of 32 pixels, 890 of 224. Of each an evaluation holds a copy per attack.
AT_ONCE = 2**29


def cut(data: Split, multiple: int = 1) -> Iterator[slice]:
    """Consecutive parts of at most `AT_ONCE` bytes; each but the last has a multiple of so many images."""
    size = max(1, AT_ONCE // data[:1].pixels.nbytes // multiple) * multiple
    for start in range(0, len(data), size):
        yield slice(start, min(start + size, len(data)))


class Shards:
    """Attacked images in a folder, a file per part, named by the number of its first image.

    `shards[a:b]` reads the images a to b, whatever parts they were written in.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, start: int, attacked: AttackedImages) -> None:
        """Write the images from `start` on. Those at 0 begin anew: what an earlier evaluation has left is removed."""
        if start == 0 and self.folder.is_dir():
            for old in self.folder.glob("*.safetensors"):
                old.unlink()
        attacked.save(self.folder / f"{start:08d}.safetensors")

    def __getitem__(self, wanted: slice) -> AttackedImages:
        """Raises UserError: there are none."""
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise missing(self.folder / "00000000.safetensors", "a .safetensors file")
        first, last = wanted.start or 0, sys.maxsize if wanted.stop is None else wanted.stop
        starts = [*(int(file.stem) for file in files), sys.maxsize]
        parts = []
        for file, start, end in zip(files, starts[:-1], starts[1:], strict=True):
            if start < last and end > first:
                parts.append(AttackedImages.load(file)[max(first - start, 0) : last - start])
        return AttackedImages.joined(parts)


class Kept(Mapping):
    """Attacked images by the attack's name: in a folder, and read when they are asked for; in memory without one."""

    def __init__(self, folder: Path | None):
        self.folder, self.parts = folder, {}

    def add(self, name: str, start: int, attacked: AttackedImages) -> None:
        """Keep what an attack has made of the images from `start` on; in their order."""
        self.parts.setdefault(name, []).append(None if self.folder else attacked)
        if self.folder:
            self._shards(name).add(start, attacked)

    def _shards(self, name: str) -> Shards:
        return Shards(self.folder / name.replace(",", "").replace(" ", "-"))

    def __getitem__(self, name: str) -> AttackedImages:
        parts = self.parts[name]
        return self._shards(name)[:] if self.folder else AttackedImages.joined(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)
