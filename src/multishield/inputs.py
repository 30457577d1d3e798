"""What may be evaluated: images and models that cannot be used are refused before any attack, with one sentence."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from multishield.attacks.threat_model import Ball
from multishield.defences import RejectClass
from multishield.errors import UserError, reason_of
from multishield.forward import device_of, forward
from multishield.images import AttackedImages, Images, in_unit_range, pixels_of


def images_of(images, labels, ids=None, bounds: tuple[float, float] = (0.0, 1.0)) -> Images:
    """Images of a user, on the CPU and without gradients; the ids are 0..N-1 by default.

    Raises UserError unless all are as `evaluate` wants them, with one label and one id per image.
    """
    if labels is None and isinstance(images, (Dataset, DataLoader)):
        images, labels = _read(images)
    images = _pixels_of(images, "images", bounds)
    labels = _whole_numbers(labels, "labels", len(images))
    ids = torch.arange(len(images)) if ids is None else _whole_numbers(ids, "ids", len(images))
    if len(ids.unique()) < len(ids):
        raise UserError("two images have the same id; give every image an id of its own")
    return Images(images, labels, ids)


def candidates_of(candidates: Mapping[str, Tensor], data: Images, ball: Ball) -> dict[str, AttackedImages]:
    """Attacked images of a user as `AttackedImages` by the name of their attack, "from" and the name of the source.

    Raises UserError unless there is one image in the ball around each clean one; the sentence names the farthest.
    """
    checked, none = {}, torch.zeros(len(data), dtype=torch.long)
    for name, given in candidates.items():
        if not isinstance(name, str) or not name.isprintable() or not name:
            raise UserError(f"candidates are named {name!r}; give each source a name, in one line of text")
        images = in_unit_range(_pixels_of(given, source := f"the candidates {name!r}", ball.bounds))
        if images.shape != data.images.shape:
            raise UserError(f"{source} are {tuple(images.shape)}; give one per clean image {tuple(data.images.shape)}")
        try:
            ball.checked_distance(images, data.pixels, source)
        except RuntimeError as error:
            raise UserError(f"{error}; give images of the ball around the clean ones") from None
        checked[f"from {name}"] = AttackedImages(images, [""] * len(data), none, none)
    return checked


def _read(source: Dataset | DataLoader) -> tuple[Tensor, Tensor]:
    """All images and labels, in their order."""
    try:
        batches = source if isinstance(source, DataLoader) else DataLoader(source, batch_size=128)
        images, labels = zip(*batches, strict=True)
        return torch.cat(images), torch.cat(labels)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        given = f"images are a {type(source).__name__} that cannot be read: {reason_of(error)}"
        raise UserError(f"{given}; pairs (image, label) are accepted, tensors of one size and whole numbers") from None


def _tensor_of(values):
    """A tensor from an array or a list; anything else as it is."""
    try:
        return torch.as_tensor(np.require(values, None, "CW") if isinstance(values, np.ndarray) else values).detach()
    except (TypeError, ValueError, RuntimeError):
        return values


def _pixels_of(given, name: str, bounds: tuple[float, float]) -> Tensor:
    """Images on the CPU: float32 within the bounds. In [0,1] bytes remain bytes, which need a quarter of the memory."""
    images = _tensor_of(given)
    if not (isinstance(images, Tensor) and images.ndim in (2, 4) and images.numel()):
        raise UserError(f"{name} are {_described(images)}; (N,C,H,W) or (N,D) of at least one image is accepted")
    images = images.to("cpu", torch.float32 if images.is_floating_point() else images.dtype)
    images = images.clone() if images.is_inference() else images  # only a copy of such images can have gradients
    try:
        return images if images.dtype == torch.uint8 and bounds == (0.0, 1.0) else pixels_of(images, bounds)
    except ValueError as error:
        raise UserError(str(error)) from None


def _whole_numbers(given, name: str, count: int) -> Tensor:
    """Labels or ids of a user: int64 (N,), on the CPU."""
    numbers = _tensor_of(given)
    if not (isinstance(numbers, Tensor) and "int" in str(numbers.dtype) and numbers.shape in ((count,), (count, 1))):
        raise UserError(f"{name} are {_described(numbers)}; {count} whole numbers are accepted, one each")
    return numbers.reshape(-1).cpu().long().clone()


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
    changed, lists = [], [child if isinstance(child, nn.ModuleList) else [child] for child in model.children()]
    hooks = [m.register_forward_hook(lambda m, x, out: changed.extend(x[:1])) for models in lists for m in models]
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
        given = f"the defence gives margins {tuple(margins.shape)} and outputs {tuple(outputs.shape)}"
        raise UserError(f"{given}; (B,M,K) and (B,K+1) are accepted, with the same number of classes K")
    if not margins.isfinite().all():
        raise UserError("the defence gives a margin that is not a finite number; look for a division by zero in it")
    if (margins.amin(1) > 0).sum(1).max() > 1:
        accepted = "every other class needs a margin below 0, such as its score less the best other one"
        raise UserError(f"the defence accepts two classes of one image: all their margins are above 0; {accepted}")
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
