"""A model's answers, asked for twice: what may be counted is finite and depends on the image alone."""

import torch
from torch import Tensor, nn

from multishield.errors import UserError
from multishield.forward import called, device_of, forward

# By how much a score may change when its image is decided again, as a part of the largest score: rounding, not chance.
REPEATABLE = 1e-4


@torch.no_grad()
def ask_twice(
    model: nn.Module, pixels: Tensor, who: str = "", names: list | None = None, batch_size: int = 128
) -> tuple[list[Tensor], Tensor]:
    """A model's scores of images, and of the same images in reverse order and in batches of another size.

    Args:
        model: pixels (N,3,H,W) in [0,1] to logits (N,K); or a defence, whose scores are asked for.
        who: what a message calls the model; its parts' names unless given.
        names: what it calls the images; their numbers unless given.

    Returns:
        The scores, [z] or [z, c], on the CPU; and per image by how much they changed, as a part of the largest (N,).

    Raises:
        UserError: a score is not finite, or changes by more than `REPEATABLE`: no attack's failure on such a model
            would mean anything.
    """
    scores = _scores(model, pixels, batch_size)
    again = _scores(model, pixels.flip(0), max(1, min(batch_size, len(pixels)) // 2))
    change = torch.zeros(len(pixels))
    for number, (once, twice) in enumerate(zip(scores, again, strict=True)):
        part = (once - twice.flip(0)).abs().reshape(len(once), -1).amax(1) / once.abs().max().clamp_min(1e-12)
        change, i = torch.maximum(change, part), int(part.argmax())
        if part[i] > REPEATABLE:
            raise UserError(
                f"{who or called(model, number)} answers differently when asked again: the scores of image "
                f"{names[i] if names else i} change by {100 * float(part[i]):.2g} % of the largest. A model must "
                "answer by the image alone: no dropout, no noise, no look at a batch's other images (call .eval(); see "
                "what its forward does)"
            )
    return scores, change


def _scores(model: nn.Module, pixels: Tensor, batch_size: int) -> list[Tensor]:
    parts = [forward(getattr(model, "scores", model), x.to(device_of(model))) for x in pixels.split(batch_size)]
    parts = [part if isinstance(part, tuple) else (part,) for part in parts]
    return [torch.cat(column).cpu() for column in zip(*parts, strict=True)]
