"""The loop of all iterative attacks: one batch that stays full, one forward for loss and verdict.

Every slot of the batch is one try at one image and has its own step count, state and random stream. An image that is
broken leaves at once, a try that has used up its steps is followed by the next one, and free slots are filled from the
queue. So hardware stays busy to the end, and an image's result depends on nothing but the image: not on the batch size,
the order, or its neighbours. On a CPU that holds bit for bit; a GPU chooses its kernels by the size of the batch.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from multishield.attacks.loop.batch_size import affordable
from multishield.attacks.loop.folding import folded
from multishield.attacks.loop.random_streams import keys, uniform
from multishield.attacks.loop.result import AttackResult, Success
from multishield.models.classifier import SMALLEST, Outputs, forward
from multishield.storage.errors import UserError

State = dict[str, Tensor]
# Outputs, labels, targets and variants of the slots to losses, each (B,), which the attack raises.
Objective = Callable[[Outputs, Tensor, Tensor, Tensor], tuple[Tensor, ...]]


class Rule(Protocol):
    """How an attack moves. `state` holds per slot "x", "clean", "step", and what `start` adds."""

    steps: int
    needs_gradient: bool

    def start(self, clean: Tensor, streams: Tensor) -> State:
        """The first "x" and the rule's own state, from clean images and keys of random streams."""

    def move(self, state: State, losses: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        """The next x, from the losses and their gradients at this one; updates the rule's own state."""


def has_bf16(where: torch.device) -> bool:
    """Whether bf16 arithmetic is native on the device, and so worth its coarser steps."""
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def _some(shape: torch.Size, where: torch.device) -> Tensor:
    """Images of this shape: what is learnt from them must not depend on which images are attacked."""
    return uniform(torch.arange(SMALLEST), shape.numel()).view(-1, *shape).to(where)


def _cast_once(twin: Callable) -> None:
    """Weights in bf16 that autocast would cast at every call; new ones, because the model shares those of its twin."""
    for module in getattr(twin, "__self__", twin).modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weight.bfloat16(), requires_grad=False))


class _Run:
    """One attack on a set of images: the queue, the slots, and the results so far."""

    def __init__(self, model, images, labels, ids, success, fast, where, batch_size):
        self.model, self.success, self.where = model, success, where
        self.fast = fast and has_bf16(where)
        self.images, self.labels, self.ids = images, labels, ids
        sample = _some(images[0].shape, where)
        self.moving = folded(model, sample)
        self.exact = self.moving is model and not self.fast
        self.batch_size = batch_size or affordable(self.moving, sample, where)
        if self.fast and self.moving is not model:
            _cast_once(self.moving)
        self.result, self.done = images.clone(), torch.zeros(len(images), dtype=torch.bool)
        self.passes = torch.zeros(2, len(images), dtype=torch.long)

    def resized(self, compute: Callable[[], object]):
        """`compute`, or None where memory did not suffice: the batch is halved then."""
        try:
            return compute()
        except torch.OutOfMemoryError:
            if self.batch_size <= SMALLEST:
                raise UserError(
                    f"{SMALLEST} images at once, the fewest, do not fit into the memory of the device; use a smaller "
                    "model, or the CPU (CUDA_VISIBLE_DEVICES= in front of the command)"
                ) from None
            self.batch_size //= 2
            return None

    @torch.no_grad()
    def clean(self, plan) -> Tensor | None:
        """Decide on the clean images; those that are wrong already are done. Returns the targets (N,V)."""
        parts, at = [], 0
        while at < len(self.images):
            part = slice(at, at + self.batch_size)
            x, y = self.images[part].to(self.where), self.labels[part].to(self.where)
            out = self.resized(lambda x=x: forward(self.model, x))
            if out is None:
                continue
            self.done[part] = self.success(out, y).cpu()
            parts.append(plan(out, y).cpu() if plan else None)
            at = part.stop
        self.passes[0] = 1
        return torch.cat(parts) if plan else None

    def step(self, x: Tensor) -> Outputs:
        """Outputs of the folded twin, float32, that moves are computed from; inside in bf16 where that is wanted."""
        with torch.autocast(self.where.type, torch.bfloat16, enabled=self.fast):
            out = forward(self.moving, x)
        return tuple(t.float() for t in out) if isinstance(out, tuple) else out.float()

    @torch.no_grad()
    def verdict(self, s: State, out: Outputs, last: Tensor, height: Tensor | None) -> Tensor:
        """Which slots are broken, by the model itself in full precision. What the twin calls broken is looked at again,
        and so is the last image of every try.

        A random search keeps only what raises its loss, the `height`: where its moves are in bf16 and the model has
        said no, the twin must climb higher before it is asked again. An image on the edge would otherwise cost a second
        pass at every query.
        """
        claimed = self.success(out, s["label"])
        if self.exact:
            return claimed
        climbing = self.fast and height is not None
        asked = last | (claimed & (height > s["refuted"]) if climbing else claimed)
        broken, i = torch.zeros_like(claimed), asked.nonzero()[:, 0]
        if len(i):
            broken[i] = self.success(forward(self.model, s["x"][i]), s["label"][i])
        if climbing:
            s["refuted"] = torch.where(asked & ~broken, height, s["refuted"])
        return broken


def ascend(
    model: Callable[[Tensor], Outputs],
    images: Tensor,
    labels: Tensor,
    *,
    ids: Tensor,
    seed: int,
    tag: str,
    success: Success,
    objective: Objective,
    rule: Rule,
    where: torch.device,
    variants: int = 1,
    plan: Callable[[Outputs, Tensor], Tensor] | None = None,
    fast: bool = False,
    batch_size: int | None = None,
    watch: Callable[..., None] | None = None,
) -> AttackResult:
    """Attack each image until it is broken or all its tries have failed.

    Args:
        model: pixels to outputs. images, labels: (N,3,H,W) in [0,1]; (N,).
        ids, seed, tag: name the random stream of each image and try.
        success: the rule that decides on the model's outputs, images that are wrong when clean included.
        objective: the losses to be raised. rule: how to move.
        where: the device.
        plan: outputs and labels of clean images to a target per try, (B,V). Without one the target is -1.
        variants: tries per image, one after the other (with a plan: V); `objective` tells them apart.
        fast: compute moves in bf16 where the device has it. In any case they are made with batch norms folded (see
            `folding`), and verdicts are the model's own, in full precision.
        batch_size: slots, and at the end up to half as many more; by default as many as pay and as memory has room
            for. It has no influence on results.
        watch: called after every step as watch(indices, images, success, passes, left) with the images that it has
            finished, often none, and `left`, the tries times steps that are still to do, at most.
    """
    if not len(images):
        none = torch.zeros(0, dtype=torch.long)
        return AttackResult(images.clone(), none.bool(), none, none)
    run = _Run(model, images, labels, ids, success, fast, where, batch_size)
    targets = run.clean(plan)
    variants = variants if targets is None else targets.shape[1]
    queue = deque((int(i), 0) for i in (~run.done).nonzero()[:, 0])
    streams = torch.stack([keys(seed, f"{tag}/{v}", ids) for v in range(variants)], 1)
    budget = torch.where(run.done, 0, variants * (rule.steps + 1))
    if watch and run.done.any():
        _report(watch, run, run.done.nonzero()[:, 0], budget)
    slots: State = {}
    while queue or len(slots.get("image", ())):
        slots = _fill(slots, queue, run, rule, streams, targets)
        evaluated = run.resized(lambda s=slots: _evaluate(run, rule, objective, s))
        if evaluated is None:
            queue.extendleft((int(i), int(v)) for i, v in zip(slots["image"], slots["variant"], strict=True))
            slots = {}
            continue
        slots = _advance(slots, queue, run, rule, variants, budget, watch, *evaluated)
    return AttackResult(run.result, run.done, run.passes[0], run.passes[1])


def _fill(slots: State, queue: deque, run: _Run, rule: Rule, streams: Tensor, targets: Tensor | None) -> State:
    """New tries from the queue into the free slots. The last few come in beyond them: left for later they would keep
    the hardware for as long as a full batch."""
    few = run.batch_size > SMALLEST and len(queue) <= run.batch_size // 2  # where memory is short, never
    free = len(queue) if few else run.batch_size - len(slots.get("image", ()))
    tries = [queue.popleft() for _ in range(min(free, len(queue)))]
    if not tries:
        return slots
    image, variant = (torch.tensor(column) for column in zip(*tries, strict=True))
    clean = run.images[image].to(run.where)
    new = {
        "image": image,
        "variant": variant,
        "label": run.labels[image],
        "target": targets[image, variant] if targets is not None else torch.full_like(image, -1),
        "step": torch.zeros_like(image),
        "refuted": torch.full(image.shape, -torch.inf),
    }
    new = {name: t.to(run.where) for name, t in new.items()}
    new |= {"clean": clean, **rule.start(clean, streams[image, variant].to(run.where))}
    return {name: torch.cat([slots[name], t]) for name, t in new.items()} if slots else new


def _evaluate(run: _Run, rule: Rule, objective: Objective, s: State):
    """One forward: losses, their gradients where the rule wants them, and the verdict."""
    x = s["x"].detach().requires_grad_(rule.needs_gradient)
    with torch.set_grad_enabled(rule.needs_gradient):
        out = run.step(x)
        losses = objective(out, s["label"], s["target"], s["variant"])
    gradients = ()
    if rule.needs_gradient and bool((s["step"] < rule.steps).any()):
        last = len(losses) - 1
        gradients = tuple(torch.autograd.grad(loss.sum(), x, retain_graph=i < last)[0] for i, loss in enumerate(losses))
    losses = tuple(loss.detach() for loss in losses)
    height = None if rule.needs_gradient else losses[0]
    return run.verdict(s, out, s["step"] >= rule.steps, height), losses, gradients


def _advance(slots, queue, run, rule, variants, budget, watch, broken, losses, gradients) -> State:
    """Take verdicts in, move what goes on, and let broken and used up tries leave."""
    at, ended = slots["image"].cpu(), slots["step"] >= rule.steps
    run.passes[0, at] += 1
    if rule.needs_gradient:
        run.passes[1, at] += (~ended).long().cpu()  # none for the last look at a try
    budget[at] -= 1
    leaving, finished = broken | ended, at[:0]
    if leaving.any():
        finished = _leave(slots, queue, run, variants, budget, broken, ended)
        slots = {name: t[~leaving] for name, t in slots.items()}
        losses, gradients = tuple(t[~leaving] for t in losses), tuple(t[~leaving] for t in gradients)
    if watch:
        _report(watch, run, finished, budget)
    if not len(slots["image"]):
        return {}
    slots["x"] = rule.move(slots, losses, gradients)
    slots["step"] = slots["step"] + 1
    return slots


def _leave(slots, queue, run, variants, budget, broken, ended) -> Tensor:
    """Keep what broken tries have found, and queue the next try of images that resisted one. Returns the images that
    are finished."""
    at, lost = slots["image"].cpu(), ended & ~broken
    won = at[broken.cpu()]
    run.result[won], run.done[won], budget[won] = slots["x"][broken].cpu(), True, 0
    again = lost & (slots["variant"] + 1 < variants)
    queue.extendleft((int(i), int(v) + 1) for i, v in zip(slots["image"][again], slots["variant"][again], strict=True))
    return at[(broken | (lost & ~again)).cpu()]


def _report(watch, run: _Run, indices: Tensor, budget: Tensor) -> None:
    watch(indices, run.result[indices], run.done[indices], run.passes[:, indices].T, int(budget.sum()))
