"""How many images an attack works on at once: as many as pay, and as the device has memory for."""

import math
from collections.abc import Callable

import psutil
import torch
from torch import Tensor

# More does not pay: throughput by batch size is in benchmarks/README.md. Where memory allows less, less is taken.
BATCH_SIZE = {"cpu": 128, "cuda": 1024}
# Share of the free memory that one batch may take.
MEMORY_SHARE = 0.5


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
