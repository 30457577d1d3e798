"""Training that is killed: a few images that hold something to learn, and a death after so many epochs."""

import torch

from multishield.images import Images


def data(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % 3
    images[labels == 1] //= 2  # something to learn
    return Images(images, labels, torch.arange(n))


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


def kill_after(monkeypatch, module, epochs):
    name = "train_epoch" if hasattr(module, "train_epoch") else "_one_epoch"
    original, calls = getattr(module, name), []

    def one_epoch(*args):
        if len(calls) == epochs:
            raise Killed
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(module, name, one_epoch)
    return lambda: monkeypatch.setattr(module, name, original)
