"""What may be evaluated: refused with one sentence before anything is attacked."""

import torch
from torch import Tensor, nn

from multishield.answers import ask_twice
from multishield.defences import RejectClass, as_defence
from multishield.errors import UserError, reason_of
from multishield.forward import device_of, forward
from multishield.images import Split
from multishield.shards import cut


def usable_images(images: Tensor, labels: Tensor) -> None:
    """Refuse images that are no RGB pixels in [0,1], and labels that are not one class per image.

    Raises:
        UserError: which, and what is accepted.
    """
    if not (isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3 and len(images)):
        raise UserError(f"images are {_shape(images)}; a tensor (N,3,H,W) of at least one RGB image is accepted")
    if images.dtype not in (torch.float32, torch.uint8):
        raise UserError(f"images are {images.dtype}; pixels are float32 in [0,1], or uint8 in 0..255")
    if images.is_floating_point() and not images.isfinite().all():
        raise UserError(f"image {_first(~images.isfinite())} has a pixel that is not a finite number")
    if images.is_floating_point() and (images.min() < 0 or images.max() > 1):
        raise UserError(
            f"pixels lie in [{images.min():.3g}, {images.max():.3g}]; they must lie in [0,1]: give images that are not "
            "normalised, and put the normalisation into the model"
        )
    whole = isinstance(labels, Tensor) and labels.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
    if not whole or labels.shape != (len(images),):
        raise UserError(
            f"labels are {_shape(labels)}; a tensor of {len(images)} whole numbers is accepted, one per image"
        )


def usable_model(model: nn.Module, data: Split) -> tuple[nn.Module, bool, list[str]]:
    """A model as a defence in evaluation mode, whether it has gradients, and what a reader should know.

    Raises:
        UserError: it is no module, fails, gives something else than K+1 outputs or margins, or answers by chance; or a
            label is none of its classes.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is {_shape(model)}; a torch.nn.Module or a defence is accepted")
    # A defence's own flag means nothing: it has no layers but those of its models.
    training = any(part.training for part in model.modules() if not hasattr(part, "margins"))
    notes = ["it was in training mode and was put into evaluation mode"] if training else []
    defence = as_defence(model.eval())
    defence.eval()
    x, labels = data[:4].pixels.to(device_of(defence)).requires_grad_(), data.labels
    try:
        if isinstance(defence, RejectClass):
            _refuse_other_than_outputs(defence.network(x))
        margins, outputs = _answers(defence, forward(defence.scores, x))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"the model fails on images {tuple(x.shape)}: {reason_of(error)}") from None
    classes = outputs.shape[1] - 1
    if margins.shape[2] != classes:
        raise UserError(
            f"the defence has margins of {margins.shape[2]} classes and outputs of {classes}; they must agree"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"labels lie in {int(labels.min())}..{int(labels.max())}, but the model has {classes} classes and, as its "
            f'last output, "reject"; accepted are 0..{classes - 1}'
        )
    for part in cut(data):
        ask_twice(defence, data[part].pixels, "the model", names=data.ids[part].tolist())
    steepest = _steepest(margins, x)
    if steepest is None:
        notes.append("it has no gradient to the pixels: only the black-box attack was run, which proves little")
    elif not steepest:
        notes.append("a part of it has gradients of zero at the first images: white-box attacks may be blind there")
    return defence, steepest is not None, notes


def _refuse_other_than_outputs(given) -> None:
    if not isinstance(given, Tensor) or given.ndim != 2 or given.shape[1] < 3 or not given.is_floating_point():
        raise UserError(
            f"the model gives {_shape(given)}; K+1 outputs (B,K+1) are accepted, the last of them 'reject': put a "
            "classifier that never rejects into `Undefended`"
        )


def _answers(defence: nn.Module, scores) -> tuple[Tensor, Tensor]:
    margins, outputs = defence.margins(scores), defence.outputs(scores)
    if margins.ndim != 3 or outputs.ndim != 2:
        raise UserError(
            f"the defence gives margins {tuple(margins.shape)} and outputs {tuple(outputs.shape)}; (B,M,K) and (B,K+1) "
            "are accepted"
        )
    if not margins.isfinite().all():
        raise UserError("the defence gives a margin that is not a finite number; look for a division by zero in it")
    return margins, outputs


def _steepest(margins: Tensor, x: Tensor) -> float | None:
    """The largest entry of the flattest margin's gradient at some images; None where a margin has no gradient."""
    sums = [part[:, 0].sum() for part in margins.unbind(1)] if margins.requires_grad else [margins.sum().detach()]
    if not all(total.requires_grad for total in sums):
        return None
    found = [torch.autograd.grad(total, x, retain_graph=True, allow_unused=True)[0] for total in sums]
    return None if any(g is None for g in found) else min(float(g.abs().max()) for g in found)


def _first(wrong: Tensor) -> int:
    return int(wrong.flatten(1).any(1).nonzero()[0, 0])


def _shape(given) -> str:
    return f"{tuple(given.shape)} {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
