"""What may be evaluated: images and models that cannot be used are refused before any attack, with one sentence."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from multishield.defences import RejectClass
from multishield.errors import UserError, reason_of
from multishield.forward import check_repeatable, device_of, forward
from multishield.images import Images, pixels_of

# Images that are scored twice, see `check_repeatable`.
ASKED_TWICE = 128


def images_of(images: Tensor, labels: Tensor, ids: Tensor | Sequence[int] | None = None) -> Images:
    """Images of a user on the CPU; ids are 0..N-1 by default. UserErrors for what `evaluate` does not take."""
    if not (isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3 and len(images)):
        raise UserError(f"images are {_described(images)}; a tensor (N,3,H,W) of at least one RGB image is accepted")
    if images.dtype not in (torch.float32, torch.uint8):
        raise UserError(f"images are {images.dtype}; pixels are float32 in [0,1], or uint8 in 0..255")
    try:
        pixels_of(images)
    except ValueError as error:
        raise UserError(str(error)) from None
    if not isinstance(ids, Tensor):
        numbers = np.arange(len(images)) if ids is None else np.asarray(ids)
        ids = torch.from_numpy(numbers) if numbers.dtype.kind in "iu" else ids
    for name, numbers in (("labels", labels), ("ids", ids)):
        whole = isinstance(numbers, Tensor) and numbers.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
        if not whole or numbers.shape != (len(images),):
            raise UserError(f"{name} are {_described(numbers)}; {len(images)} whole numbers are accepted, one each")
    if len(ids.unique()) < len(ids):
        raise UserError("two images have the same id; give every image an id of its own")
    images, labels, ids = (t.detach().cpu() for t in (images, labels, ids))
    images = images.clone() if images.is_inference() else images  # only a copy of such images can have gradients
    return Images(images, labels.long().clone(), ids.long().clone())


def usable_defence(model: nn.Module, data: Images) -> tuple[nn.Module, bool, list[str]]:
    """A defence in evaluation mode, whether it has gradients, and notes for the reader, or a UserError."""
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is {_described(model)}; a torch.nn.Module or a defence is accepted")
    if not hasattr(model, "margins"):
        raise UserError(
            f"the model is a {type(model).__name__}, and nothing says what its last output means; give "
            "RejectClass(model) if it means 'reject', and Undefended(model) if all outputs are classes"
        )
    x = data[:4].pixels.to(device_of(model)).requires_grad_()
    changed = []
    models = [m for child in model.children() for m in (child if isinstance(child, nn.ModuleList) else [child])]
    hooks = [m.register_forward_hook(lambda m, given, out: changed.extend(given[:1])) for m in models]
    try:
        if isinstance(model, RejectClass):
            _check_outputs(model.models[0](x.clone()))
        scores = forward(model.scores, x)
        margins = _checked_margins(model, scores, data.labels)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"the model fails on images {tuple(x.shape)}: {reason_of(error)}") from None
    finally:
        for hook in hooks:
            hook.remove()
    check_repeatable(model, data[:ASKED_TWICE].pixels, "the model")
    copied = any(isinstance(x, Tensor) and x._version for x in changed)
    notes = ["the model changes the pixels that it is given; it gets a copy"] if copied else []
    steepest = _steepest(scores, margins, x)
    if steepest is None:
        notes.append("it has no gradient to the pixels: only the black-box attack was run, which proves little")
    elif not steepest:
        notes.append("a component has gradients of zero at the first images: white-box attacks may be blind there")
    return model, steepest is not None, notes


def _check_outputs(outputs) -> None:
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 3 or not outputs.is_floating_point():
        raise UserError(f"the model gives {_described(outputs)}; outputs (B,K+1) are accepted, the last one 'reject'")


def _checked_margins(defence: nn.Module, scores, labels: Tensor) -> Tensor:
    """The margins (B,M,K) of some images, once they fit to the outputs and the labels."""
    margins, outputs = defence.margins(scores), defence.outputs(scores)
    if margins.ndim != 3 or outputs.ndim != 2 or margins.shape[2] != outputs.shape[1] - 1:
        raise UserError(
            f"the defence gives margins {tuple(margins.shape)} and outputs {tuple(outputs.shape)}; (B,M,K) and (B,K+1) "
            "are accepted, with the same number of classes K"
        )
    if not margins.isfinite().all():
        raise UserError("the defence gives a margin that is not a finite number; look for a division by zero in it")
    if (margins.amin(1) > 0).sum(1).max() > 1:
        raise UserError(
            "the defence accepts two classes of one image: all their margins are above 0; a margin must be below 0 for "
            "every class that is not accepted, as a class's score less the best other one"
        )
    low, high, classes = int(labels.min()), int(labels.max()), margins.shape[2]
    if low < 0 or high >= classes:
        raise UserError(f"labels lie in {low}..{high}, but the model has {classes} classes; give 0..{classes - 1}")
    return margins


def _steepest(scores: tuple[Tensor, ...], margins: Tensor, x: Tensor) -> float | None:
    """The largest entry of the flattest margin's gradient at some images; None where a score has no gradient."""
    smooth = all(score.requires_grad for score in scores)
    sums = [margin[:, 0].sum() for margin in margins.unbind(1)] if smooth else []
    if not sums or not all(total.requires_grad for total in sums):
        return None
    gradients = [torch.autograd.grad(total, x, retain_graph=True, allow_unused=True)[0] for total in sums]
    return None if any(g is None for g in gradients) else min(float(g.abs().max()) for g in gradients)


def _described(value) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
