"""One forward pass whose bytes do not depend on the batch, and the devices that models are on."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from multishield.errors import UserError
from multishield.shield import evaluating

# The outputs of a model for a batch: a tensor (B,C), or a tuple of them (a shield's logits and cosines).
Outputs = Tensor | tuple[Tensor, ...]
# CPU kernels sum some numbers of images in another order: the last bits of a result would depend on the batch. So
# batches are filled up with repeats. MKL's portable branch works in blocks of eight rows per thread.
FILL = 16
# By how much a score may change when its image is scored again, as a share of the largest score: rounding, not chance.
REPEATABLE = 1e-4


def freeze(module: nn.Module) -> nn.Module:
    """Put a module into evaluation mode, without gradients of its parameters: gradients go to the pixels only."""
    return module.eval().requires_grad_(False)


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def own_settings(*modules: nn.Module) -> Iterator[None]:
    """Torch's settings as this package needs them, whatever the caller's are. Afterwards all are as they were.

    Gradients are on, autocast is off, new numbers are float32, and a GPU computes in full precision and always in the
    same way. The modules are in evaluation mode. Random numbers that they draw are not missing to the caller.
    """
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    contexts = [torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[])]
    contexts += [torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda")]
    contexts += [torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)]
    with ExitStack() as stack:
        for context in (*contexts, *map(evaluating, modules)):
            stack.enter_context(context)
        stack.callback(torch.set_default_dtype, dtype)
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        yield


def device_of(model: nn.Module) -> torch.device:
    """The device of a model; one without parameters and buffers (a frozen TorchScript) is on `device()`."""
    tensors = (t for kind in ("parameters", "buffers") for t in getattr(model, kind, tuple)())
    return next((t.device for t in tensors), device())


def forward(model: Callable[[Tensor], Outputs], x: Tensor) -> Outputs:
    """The outputs of a model for pixels (B,...): on a CPU, those of an image have the same bytes in every batch.

    The model is a module, a bound method of one (such as a shield's `scores`), or any function of pixels. It is asked
    in evaluation mode, with its own copy of the pixels. Raises UserError if an output is not finite: it would be no
    class and no rejection, so nothing can be counted.
    """
    filled = -(-len(x) // FILL) * FILL
    owner = getattr(model, "__self__", model)
    with evaluating(owner) if isinstance(owner, nn.Module) else nullcontext():
        out = model(x.clone() if filled == len(x) else x[torch.arange(filled, device=x.device) % len(x)])
    columns = out if isinstance(out, tuple) else (out,)
    for number, scores in enumerate(columns):
        if not scores.isfinite().all():
            names = dict(enumerate(getattr(owner, "components", ("the classifier",))))
            bad = int((~scores.isfinite()).reshape(len(scores), -1).any(1).nonzero()[0, 0])
            some = ", ".join(f"{score:.3g}" for score in scores[bad].flatten()[:3].tolist())
            given = f"{names.get(number, f'component {number + 1}')} gives image {bad} of a batch of {len(x)}"
            mend = "look for damaged weights, a division by zero or an overflow in it"
            raise UserError(f"{given} the scores [{some}, ...], which are not finite; {mend}")
    return tuple(t[: len(x)] for t in columns) if isinstance(out, tuple) else out[: len(x)]


@torch.no_grad()
def scores_of(model: nn.Module, pixels: Tensor, batch_size: int | None = None) -> tuple[Tensor, ...]:
    """The scores of all images, computed in batches, on the CPU: logits (N,K), or the `scores` of a defence."""
    call, device = getattr(model, "scores", model), device_of(model)
    batches = [forward(call, x.to(device)) for x in pixels.split(batch_size or 128)]
    batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    return tuple(torch.cat(column).cpu() for column in zip(*batches, strict=True))


@torch.no_grad()
def outputs(model: nn.Module, pixels: Tensor, batch_size: int | None = None) -> Tensor:
    """The outputs (N,C) of a model or a defence for all images, computed in batches, on the CPU."""
    call, rule = (model.scores, model.outputs) if hasattr(model, "margins") else (model, lambda out: out)
    device = device_of(model)
    return torch.cat([rule(forward(call, x.to(device))).cpu() for x in pixels.split(batch_size or 256)])


def accuracy(model: nn.Module, data, batch_size: int = 256) -> float:
    """The share of `Images` whose largest output is the label's; NaN where there are no images."""
    batches = [data[i : i + batch_size] for i in range(0, len(data), batch_size)]
    hits = sum(int((outputs(model, batch.pixels).argmax(1) == batch.labels).sum()) for batch in batches)
    return hits / len(data) if batches else float("nan")


def check_repeatable(model: nn.Module, pixels: Tensor, name: str, batch_size: int | None = None) -> None:
    """Score images (B,...) twice: in order, and reversed in batches of half the size.

    Raises UserError if a score changes by more than `REPEATABLE`: on such a model a failed attack proves nothing.
    """
    half = (batch_size or len(pixels)) // 2 or 1
    once, again = scores_of(model, pixels, batch_size), scores_of(model, pixels.flip(0), half)
    for first, second in zip(once, again, strict=True):
        change = (first - second.flip(0)).abs().reshape(len(first), -1).amax(1) / first.abs().max().clamp_min(1e-12)
        image = int(change.argmax())
        if change[image] > REPEATABLE:
            given = f"{name} answers differently when asked again: the scores of image {image} change by"
            mend = "remove dropout, noise, and looks at other images; `evaluate` takes a random model with `draws=20`"
            raise UserError(f"{given} {100 * float(change[image]):.2g} % of the largest; {mend}")
