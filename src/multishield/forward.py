"""One forward pass whose bytes do not depend on the batch, and the devices that models are on."""

import math
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from multishield.errors import UserError

# What a model returns for a batch: a tensor (B,C), or a tuple of them (a shield's logits and cosines).
Outputs = Tensor | tuple[Tensor, ...]


# Some numbers of images are summed in another order by CPU kernels: the last bits of a result would depend on how many
# are in the batch (tests/attacks/test_loop.py). Such batches are filled up with repeats: below 16 to a multiple of 4;
# with MKL's portable branch, which works in blocks of eight rows per thread, always to a multiple of 16.
SMALLEST, UNFILLED = (16, math.inf) if os.environ.get("MKL_CBWR") == "COMPATIBLE" else (4, 16)


def freeze(module: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients for parameters: gradients go to the pixels only."""
    return module.eval().requires_grad_(False)


def device() -> torch.device:
    """The GPU where there is one, else the CPU. A GPU is told to convolve in full precision and always the same way."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False  # verdicts would have ten bits of mantissa
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda")


def device_of(model: nn.Module) -> torch.device:
    """Where a model is; one without parameters and buffers (a frozen TorchScript) is where all are."""
    held = (t for kind in ("parameters", "buffers") for t in getattr(model, kind, tuple)())
    return next((t.device for t in held), device())


def forward(model: Callable[[Tensor], Outputs], x: Tensor) -> Outputs:
    """The model's outputs for a batch: on a CPU, an image's have the same bytes whatever else is in the batch.

    Raises:
        UserError: an output is not finite. It would be no class and no rejection: nothing may be counted of it.
    """
    filled = len(x) if len(x) >= UNFILLED else -(-len(x) // SMALLEST) * SMALLEST
    out = model(x if filled == len(x) else x[torch.arange(filled, device=x.device) % len(x)])
    for number, scores in enumerate(out if isinstance(out, tuple) else (out,)):
        if not scores.isfinite().all():
            bad = int((~scores.isfinite()).reshape(len(scores), -1).any(1).nonzero()[0, 0])
            raise UserError(
                f"{called(model, number)} gives image {bad} of a batch of {len(x)} the scores {_some(scores[bad])}, "
                "which are not finite; look for damaged weights, a division by zero or an overflow in it"
            )
    return tuple(t[: len(x)] for t in out) if isinstance(out, tuple) else out[: len(x)]


def called(model: Callable, number: int) -> str:
    """What a message calls the part of a model that gave the score of that number."""
    parts = getattr(getattr(model, "__self__", model), "parts", ("the classifier",))
    return parts[number] if number < len(parts) else f"part {number + 1}"


def _some(scores: Tensor) -> str:
    return str([round(s, 3) for s in scores.flatten()[:3].tolist()]).rstrip("]") + ", ...]"


@torch.no_grad()
def outputs(model: nn.Module, pixels: Tensor, batch_size: int = 256) -> Tensor:
    """The model's outputs for all images, on the CPU, computed in batches."""
    where = device()
    return torch.cat([forward(model, x.to(where)).cpu() for x in pixels.split(batch_size)])


def accuracy(model: nn.Module, split, batch_size: int = 256) -> float:
    """The fraction of a `data.splits.Split` whose largest output is the label's (NaN: no images), batch by batch."""
    parts = [split[i : i + batch_size] for i in range(0, len(split), batch_size)]
    hits = sum(int((outputs(model, part.pixels).argmax(1) == part.labels).sum()) for part in parts)
    return hits / len(split) if parts else float("nan")
