"""Training that is killed: a few images that hold something to learn, and a death after so many epochs."""

from collections.abc import Callable

import pandas as pd
import pytest
import torch
from torch import nn

from multishield.images import Images


def data(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % 3
    images[labels == 1] //= 2  # something to learn
    return Images(images, labels, torch.arange(n))


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


def same_bytes_after_death(folder, module, name: str, epochs: int, train: Callable) -> tuple[nn.Module, pd.DataFrame]:
    """Assert that a training that dies after so many epochs, and is called again, ends as an undisturbed one.

    The function `name` of `module` trains one epoch. `train` takes the folder of the state, or None.
    """
    undisturbed, history = train(None)
    original, calls = getattr(module, name), []

    def one_epoch(*args):
        if len(calls) == epochs:
            raise Killed
        calls.append(1)
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, one_epoch)
        with pytest.raises(Killed):
            train(folder)
        calls[:] = [1] * (epochs + 1)  # from now on nothing kills it, and epochs are counted
        resumed, again = train(folder)
    assert len(calls) == 1 + len(history), "finished epochs are not trained again"
    assert again.equals(history)
    torch.testing.assert_close(resumed.state_dict(), undisturbed.state_dict(), rtol=0, atol=0)
    return resumed, history
