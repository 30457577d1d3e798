"""The model as an attack's moves need it: batch norms folded, in batches that fit memory.

In a frozen network conv -> batch norm is one affine map: folded, one pass over memory is saved in each direction. Sums
are rounded differently, so that the twin never decides: verdicts come from the model itself (see `loop`).
"""

import copy
import math
from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from multishield.attacks.random_streams import uniform
from multishield.forward import SMALLEST, Outputs, forward

# More does not pay: throughput by batch size is in benchmarks/README.md. Where memory allows less, less is taken.
BATCH_SIZE = {"cpu": 128, "cuda": 1024}
# Share of the free memory that one batch may take.
MEMORY_SHARE = 0.5


class Mover:
    """The model twice: a folded twin that moves are computed from, and the model itself, which alone decides."""

    def __init__(self, model: Callable[[Tensor], Outputs], shape: torch.Size, where: torch.device):
        self.model, self.where = model, where
        # What is learnt from these few images must not depend on which images are attacked.
        self.sample = uniform(torch.arange(SMALLEST), shape.numel()).view(-1, *shape).to(where)
        self.twin = folded(model, self.sample)
        self.exact = self.twin is model

    def __call__(self, x: Tensor) -> Outputs:
        """Outputs of the twin."""
        return forward(self.twin, x)


def with_gradients(
    x: Tensor, out: Outputs, objective: Callable[[Outputs], tuple[Tensor, ...]]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Losses of the outputs, and the gradient of each at x.

    A loss that one of several models decides alone is not sent back through the others, where it would be zero all the
    way: the margins of two models cost one backward pass through each, not two.

    Args:
        x: what the outputs were computed from, (B,3,H,W). objective: outputs to losses (B,) each.
    """
    outputs, gradients = _several(out), []
    leaves = tuple(o.detach().requires_grad_() for o in outputs)
    losses = objective(leaves if isinstance(out, tuple) else leaves[0])
    for loss in losses:
        slopes = torch.autograd.grad(loss.sum(), leaves, retain_graph=True, allow_unused=True)
        used = [i for i, slope in enumerate(slopes) if slope is not None and slope.any()]
        ends, weights = [outputs[i] for i in used], [slopes[i] for i in used]
        again = loss is not losses[-1]
        gradients.append(torch.autograd.grad(ends, x, weights, retain_graph=again)[0] if used else torch.zeros_like(x))
    return losses, tuple(gradients)


def folded(model: Callable[[Tensor], object], x: Tensor) -> Callable[[Tensor], object]:
    """A copy of the model with every foldable batch norm folded.

    Which batch norm follows which convolution is seen in one pass, not guessed from names or order: its input is the
    very tensor that the convolution returned, unchanged. Where that tensor goes elsewhere too, folding would change
    the function; so the copy must give the same outputs, or the model itself is returned.

    Args:
        model: a module, or a bound method of one (a shield's `scores`); anything else is returned as it is.
        x: a few images (B,3,H,W) for that pass, on the model's device.
    """
    owner = getattr(model, "__self__", model)
    if not isinstance(owner, nn.Module) or owner.training or not any(_is_norm(m) for m in owner.modules()):
        return model
    # Weights are shared: a CLIP's would else be in memory twice. Folding makes new ones and writes into none.
    twin = copy.deepcopy(owner, {id(t): t for t in (*owner.parameters(), *owner.buffers())})
    call = twin if owner is model else getattr(twin, model.__name__)
    with torch.no_grad():
        for convolution, norm in _pairs(twin, call, x):
            _replace(twin, convolution, fuse_conv_bn_eval(convolution, norm))
            _replace(twin, norm, nn.Identity())
        outputs = zip(_several(call(x)), _several(model(x)), strict=True)
        same = all(torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3) for ours, theirs in outputs)
    return call if same else model


def _is_norm(module: nn.Module) -> bool:
    # The exact type: a subclass (timm's norm with an activation in it) does more than its name says.
    return type(module) is nn.BatchNorm2d


def _several(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def _pairs(module: nn.Module, call: Callable, x: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions and the batch norms that take their outputs; those that are called twice are left out."""
    made, pairs, calls = [], [], {}

    def returned(convolution, inputs, output):
        # The tensor is kept alive until the end: an address would be used again.
        made.append((output, output._version, convolution))
        calls[convolution] = calls.get(convolution, 0) + 1

    def taken(norm, inputs):
        calls[norm] = calls.get(norm, 0) + 1
        pairs.extend((c, norm) for out, version, c in made if out is inputs[0] and out._version == version)

    hooks = [m.register_forward_hook(returned) for m in module.modules() if type(m) is nn.Conv2d]
    hooks += [m.register_forward_pre_hook(taken) for m in module.modules() if _is_norm(m)]
    call(x)
    for hook in hooks:
        hook.remove()
    return [(c, n) for c, n in pairs if calls[c] == calls[n] == 1]


def _replace(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def free_memory(where: torch.device) -> int:
    """Bytes that can still be had on the device."""
    return torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else psutil.virtual_memory().available


def bytes_per_image(model: Callable[[Tensor], object], x: Tensor) -> float:
    """What a forward keeps for the gradient, per image: seen in one pass over a few images (B,3,H,W)."""
    parameters = {p.data_ptr() for p in getattr(getattr(model, "__self__", model), "parameters", tuple)()}
    kept = {}

    def keep(t: Tensor) -> Tensor:
        if t.data_ptr() not in parameters:
            kept[t.data_ptr()] = t.untyped_storage().nbytes()
        # Without its place in the graph: an output that its own node keeps would hold the whole graph for ever.
        return t.detach()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = model(x.detach().requires_grad_())  # noqa: F841 - what is kept must stay alive to be counted once
    return max(sum(kept.values()), x.nbytes) / len(x)


def affordable(model: Callable[[Tensor], object], x: Tensor, where: torch.device) -> int:
    """Slots that pay and that memory has room for, a power of two and at least B, from B images (B,3,H,W)."""
    try:
        each = bytes_per_image(model, x)
    except torch.OutOfMemoryError:
        return len(x)  # not even these fit: the attack will say so
    # Twice: gradients flow back while what was kept is still there.
    room = max(1.0, MEMORY_SHARE * free_memory(where) / (2 * each))
    return max(len(x), min(BATCH_SIZE.get(where.type, BATCH_SIZE["cuda"]), 2 ** int(math.log2(room))))
