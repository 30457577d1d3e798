"""What may be evaluated: images and models that cannot be used are refused before any attack, with one sentence."""

import torch
from torch import Tensor, nn

from multishield.defences import RejectClass
from multishield.errors import UserError, reason_of
from multishield.forward import check_repeatable, device_of, forward
from multishield.images import Images

# Images that are scored twice, see `check_repeatable`.
ASKED_TWICE = 128


def check_images(images: Tensor, labels: Tensor) -> None:
    """Refuse images that are no RGB pixels in [0,1], and labels that are not one class per image, by a UserError."""
    if not (isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3 and len(images)):
        raise UserError(f"images are {_described(images)}; a tensor (N,3,H,W) of at least one RGB image is accepted")
    if images.dtype not in (torch.float32, torch.uint8):
        raise UserError(f"images are {images.dtype}; pixels are float32 in [0,1], or uint8 in 0..255")
    if not images.isfinite().all():
        bad = int((~images.isfinite()).flatten(1).any(1).nonzero()[0, 0])
        raise UserError(f"image {bad} has a pixel that is not a finite number")
    if images.is_floating_point() and (images.min() < 0 or images.max() > 1):
        raise UserError(
            f"pixels lie in [{images.min():.3g}, {images.max():.3g}]; they must lie in [0,1]: normalise in the model"
        )
    whole = isinstance(labels, Tensor) and labels.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
    if not whole or labels.shape != (len(images),):
        raise UserError(
            f"labels are {_described(labels)}; a tensor of {len(images)} whole numbers is accepted, one per image"
        )


def usable_defence(model: nn.Module, data: Images) -> tuple[nn.Module, bool, list[str]]:
    """A model as a defence in evaluation mode, whether it has gradients, and notes for the reader, or a UserError."""
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is {_described(model)}; a torch.nn.Module or a defence is accepted")
    # The flag of a defence itself means nothing: it has no layers but those of its models.
    training = any(module.training for module in model.modules() if not hasattr(module, "margins"))
    notes = ["the model was in training mode and was put into evaluation mode"] if training else []
    # A module without margins has K+1 outputs, the last of them "reject".
    defence = (model if hasattr(model, "margins") else RejectClass(model)).eval()
    x = data[:4].pixels.to(device_of(defence)).requires_grad_()
    try:
        if isinstance(defence, RejectClass):
            _check_outputs(defence.models[0](x))
        margins = _checked_margins(defence, forward(defence.scores, x), data.labels)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"the model fails on images {tuple(x.shape)}: {reason_of(error)}") from None
    check_repeatable(defence, data[:ASKED_TWICE].pixels, "the model")
    steepest = _steepest(margins, x)
    if steepest is None:
        notes.append("it has no gradient to the pixels: only the black-box attack was run, which proves little")
    elif not steepest:
        notes.append("a component has gradients of zero at the first images: white-box attacks may be blind there")
    return defence, steepest is not None, notes


def _check_outputs(outputs) -> None:
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 3 or not outputs.is_floating_point():
        raise UserError(
            f"the model gives {_described(outputs)}; K+1 outputs (B,K+1) are accepted, the last of them 'reject': put "
            "a classifier that never rejects into `Undefended`"
        )


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
    low, high, classes = int(labels.min()), int(labels.max()), margins.shape[2]
    if low < 0 or high >= classes:
        raise UserError(
            f"labels lie in {low}..{high}, but the model has {classes} classes and reject; give 0..{classes - 1}"
        )
    return margins


def _steepest(margins: Tensor, x: Tensor) -> float | None:
    """The largest entry of the flattest margin's gradient at some images; None where a margin has no gradient."""
    sums = [margin[:, 0].sum() for margin in margins.unbind(1)] if margins.requires_grad else []
    if not sums or not all(total.requires_grad for total in sums):
        return None
    gradients = [torch.autograd.grad(total, x, retain_graph=True, allow_unused=True)[0] for total in sums]
    return None if any(g is None for g in gradients) else min(float(g.abs().max()) for g in gradients)


def _described(value) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
