"""The loop of all iterative attacks: one batch that stays full, one forward for loss and verdict.

Every slot of the batch is one try at one image and has its own step count, state and random stream. An image that is
broken leaves at once, a try that has used up its steps is followed by the next one, and free slots are filled from the
queue. So hardware stays busy to the end, and an image's result depends on nothing but the image: not on the batch size,
the order, or its neighbours. On a CPU that holds bit for bit with the portable arithmetic; otherwise kernels are chosen
by the size of the batch, and last bits may differ.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from multishield.attacks.loop.mover import Mover, affordable
from multishield.attacks.loop.random_streams import keys
from multishield.attacks.loop.result import AttackedImages, Success
from multishield.models.classifier import SMALLEST, Outputs, device_of, forward
from multishield.storage.errors import UserError

State = dict[str, Tensor]
# Outputs, labels, targets and variants of the slots to losses, each (B,), which the attack raises.
Objective = Callable[[Outputs, Tensor, Tensor, Tensor], tuple[Tensor, ...]]
# Called after every step with the indices of the images that it has finished (often none), what became of them, and
# the number of steps that are still to do, at most.
Watch = Callable[[Tensor, AttackedImages, int], None]


class Plan(NamedTuple):
    """The tries of B images, the same number of columns for all.

    Attributes:
        target: the class that a try is for, (B,V) int64; NO_TRY where an image has fewer.
        start: which of `starts` it begins at, (B,V) int64; -1 where the rule says. None: everywhere.
        steps: its steps, (B,V) int64. None: the rule's; only a rule that reads "steps" from its state can have others.
    """

    target: Tensor
    start: Tensor | None = None
    steps: Tensor | None = None


NO_TRY = -2


class Rule(Protocol):
    """How an attack moves. `state` holds per slot "x", "clean", "step", "steps", "target", and what `begin` adds.

    A rule that sees no hope for a try lowers its "steps".
    """

    steps: int
    needs_gradient: bool

    def first(self, clean: Tensor, streams: Tensor) -> Tensor:
        """Where a try begins, from clean images and keys of random streams."""

    def begin(self, x: Tensor, clean: Tensor, streams: Tensor) -> State:
        """The rule's own state at the beginning, x."""

    def move(self, state: State, losses: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        """The next x, from the losses and their gradients at this one; updates the rule's own state."""


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
    where: torch.device | None = None,
    variants: int = 1,
    plan: Callable[[Outputs, Tensor, Tensor], Plan] | None = None,
    starts: Sequence[Tensor] = (),
    batch_size: int | None = None,
    watch: Watch | None = None,
    nearness: Callable[[Outputs, Tensor], Tensor] | None = None,
) -> AttackedImages:
    """Attack each image until it is broken or all its tries have failed.

    Args:
        model: pixels to outputs: a module, or a bound method of one (a shield's `scores`), or any function.
        images, labels: (N,3,H,W) in [0,1]; (N,).
        ids, seed, tag: name the random stream of each image and try. The tag is the attack's name, too.
        success: the rule that decides on the model's outputs, images that are wrong when clean included.
        objective: the losses to be raised. rule: how to move.
        where: the device; by default the model's, see `device_of`; a plain function has none.
        plan: outputs, labels and indices of clean images to their tries. Without one every target is -1.
        starts: images (N,3,H,W) that tries may begin at.
        variants: tries per image, one after the other (with a plan: its own); `objective` tells them apart.
        batch_size: slots, and at the end up to half as many more; by default as many as pay and as memory has room
            for. It has no influence on results.
        watch: see `Watch`.
        nearness: outputs and labels to how near evasion is, (B,). With it, an image that resisted is returned where it
            was nearest; without, as it was.
    """
    if not len(images):
        none = torch.zeros(0, dtype=torch.long)
        return AttackedImages(images.clone(), [], none, none)
    where = where or device_of(getattr(model, "__self__", model))
    mover = Mover(model, images[0].shape, where)
    attack = _Attack(mover, images, labels, starts, success, rule, tag, watch, batch_size, nearness)
    return attack.run(objective, plan, variants, lambda v: keys(seed, f"{tag}/{v}", ids))


class _Attack:
    """One attack on a set of images: the queue of tries, the slots that are worked on, and the results so far.

    A slot is a row of every tensor in `slots`: "image" and "variant" name the try, "label", "target", "clean", "x" and
    "step" say where it stands, and the rule adds its own state.
    """

    def __init__(
        self, mover: Mover, images, labels, starts, success: Success, rule: Rule, name, watch, batch_size, nearness
    ):
        self.mover, self.success, self.rule, self.name, self.watch = mover, success, rule, name, watch
        self.images, self.labels, self.starts = images, labels, starts
        self.batch_size = batch_size or affordable(mover.twin, mover.sample, mover.where)
        self.nearness, self.nearest = nearness, torch.full((len(images),), -torch.inf)
        self.result, self.broken_by = images.clone(), [""] * len(images)
        self.passes = torch.tensor([[1], [0]]).repeat(1, len(images))  # one forward each, on the clean image
        self.queue: deque[tuple[int, int]] = deque()
        self.slots: State = {}

    def run(self, objective: Objective, plan, variants: int, stream: Callable[[int], Tensor]) -> AttackedImages:
        """Work until no try is left. Args: see `ascend`; `stream` gives each image's key for a variant."""
        self.plan = self._decide_on_clean(plan or (lambda out, y, i: Plan(torch.full((len(y), variants), -1))))
        self.tries = (self.plan.target != NO_TRY).sum(1)
        standing = torch.tensor([not name for name in self.broken_by])
        self.queue.extend((int(i), 0) for i in (standing & (self.tries > 0)).nonzero()[:, 0])
        self.streams = torch.stack([stream(v) for v in range(self.plan.target.shape[1])], 1)
        each = torch.where(self.plan.target != NO_TRY, self.plan.steps + 1, 0)
        self.from_try = torch.nn.functional.pad(each.flip(1).cumsum(1).flip(1), (0, 1))  # steps from a try on, at most
        self.steps_left = torch.where(standing, self.from_try[:, 0], 0)
        idle = ~standing | (self.tries == 0)
        if idle.any():
            self._report(idle.nonzero()[:, 0])
        while self.queue or self.slots:
            self._fill()
            evaluated = self._within_memory(lambda: self._evaluate(objective))
            if evaluated is None:
                self._requeue(self.slots["image"], self.slots["variant"])
                self.slots = {}
            else:
                self._advance(*evaluated)
        return AttackedImages(self.result, self.broken_by, *self.passes)

    def _within_memory(self, compute: Callable[[], object]):
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
    def _decide_on_clean(self, plan) -> Plan:
        """Decide on the clean images; those that are wrong already are done. Returns the tries of all."""
        parts, at = [], 0
        while at < len(self.images):
            part = slice(at, at + self.batch_size)
            x, y = self.images[part].to(self.mover.where), self.labels[part].to(self.mover.where)
            out = self._within_memory(lambda x=x: forward(self.mover.model, x))
            if out is None:
                continue
            for i in self.success(out, y).nonzero()[:, 0].tolist():
                self.broken_by[at + i] = "clean"
            parts.append(plan(out, y, torch.arange(at, at + len(y))))
            at = part.stop
        target, start, steps = (
            torch.cat([t.cpu() for t in column]) if column[0] is not None else None
            for column in zip(*parts, strict=True)
        )
        start = torch.full_like(target, -1) if start is None else start
        return Plan(target, start, torch.full_like(target, self.rule.steps) if steps is None else steps)

    def _fill(self) -> None:
        """New tries from the queue into the free slots. The last few come in beyond them: left for later they would
        keep the hardware for as long as a full batch."""
        few = self.batch_size > SMALLEST and len(self.queue) <= self.batch_size // 2  # where memory is short, never
        free = len(self.queue) if few else self.batch_size - len(self.slots.get("image", ()))
        tries = [self.queue.popleft() for _ in range(min(free, len(self.queue)))]
        if not tries:
            return
        image, variant = (torch.tensor(column) for column in zip(*tries, strict=True))
        new = {
            "image": image,
            "variant": variant,
            "label": self.labels[image],
            "target": self.plan.target[image, variant],
            "steps": self.plan.steps[image, variant],
            "step": torch.zeros_like(image),
        }
        new = {name: t.to(self.mover.where) for name, t in new.items()}
        clean, streams = (t.to(self.mover.where) for t in (self.images[image], self.streams[image, variant]))
        x, start = self.rule.first(clean, streams), self.plan.start[image, variant]
        for number, images in enumerate(self.starts):
            at = (start == number).nonzero()[:, 0]
            x[at] = images[image[at]].to(x)
        new |= {"clean": clean, "x": x, **self.rule.begin(x, clean, streams)}
        self.slots = {name: torch.cat([self.slots[name], t]) for name, t in new.items()} if self.slots else new

    def _evaluate(self, objective: Objective):
        """One forward: which slots are broken, the losses, and their gradients where the rule wants them."""
        s, needs = self.slots, self.rule.needs_gradient
        x = s["x"].detach().requires_grad_(needs)
        with torch.set_grad_enabled(needs):
            out = self.mover(x)
            losses = objective(out, s["label"], s["target"], s["variant"])
        if self.nearness:
            self._keep_nearest(self.nearness(out, s["label"]).detach().cpu())
        gradients = ()
        if needs and bool((s["step"] < s["steps"]).any()):
            sums = [loss.sum() for loss in losses]
            gradients = tuple(torch.autograd.grad(total, x, retain_graph=total is not sums[-1])[0] for total in sums)
        losses = tuple(loss.detach() for loss in losses)
        return self._verdict(out), losses, gradients

    def _keep_nearest(self, near: Tensor) -> None:
        """Keep the images of slots that are nearer to evasion than theirs ever was: an image has one slot at a time."""
        at = self.slots["image"].cpu()
        nearer = near > self.nearest[at]
        self.nearest[at[nearer]] = near[nearer]
        self.result[at[nearer]] = self.slots["x"].detach().cpu()[nearer]

    @torch.no_grad()
    def _verdict(self, out: Outputs) -> Tensor:
        """Which slots are broken, by the model itself: it looks again at what the twin calls broken, and at the last
        image of every try."""
        s, twin_says = self.slots, self.success(out, self.slots["label"])
        if self.mover.exact:
            return twin_says
        broken, i = torch.zeros_like(twin_says), (twin_says | (s["step"] >= s["steps"])).nonzero()[:, 0]
        if len(i):
            broken[i] = self.success(forward(self.mover.model, s["x"][i]), s["label"][i])
        return broken

    def _advance(self, broken: Tensor, losses: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> None:
        """Take verdicts in, let broken and used up tries leave, and move what goes on."""
        at, ended = self.slots["image"].cpu(), self.slots["step"] >= self.slots["steps"]
        self.passes[0, at] += 1
        if self.rule.needs_gradient:
            self.passes[1, at] += (~ended).long().cpu()  # none for the last look at a try
        self.steps_left[at] -= 1
        leaving, finished = broken | ended, at[:0]
        if leaving.any():
            finished = self._leave(broken, ended)
            self.slots = {name: t[~leaving] for name, t in self.slots.items()} if not leaving.all() else {}
            losses, gradients = tuple(t[~leaving] for t in losses), tuple(t[~leaving] for t in gradients)
        self._report(finished)
        if self.slots:
            self.slots["x"] = self.rule.move(self.slots, losses, gradients)
            self.slots["step"] = self.slots["step"] + 1

    def _leave(self, broken: Tensor, ended: Tensor) -> Tensor:
        """Keep what broken tries have found, and queue the next try of images that resisted one. Returns the images
        that are finished."""
        s, lost = self.slots, ended & ~broken
        at = s["image"].cpu()
        won = at[broken.cpu()]
        self.result[won], self.steps_left[won] = s["x"][broken].cpu(), 0
        for i in won.tolist():
            self.broken_by[i] = self.name
        tried, over = at[lost.cpu()], s["variant"][lost].cpu() + 1
        self.steps_left[tried] = self.from_try[tried, over]  # a rule may have given up early
        again = lost & (s["variant"].cpu() + 1 < self.tries[at]).to(lost.device)
        self._requeue(s["image"][again], s["variant"][again] + 1)
        return at[(broken | (lost & ~again)).cpu()]

    def _requeue(self, images: Tensor, variants: Tensor) -> None:
        self.queue.extendleft((int(i), int(v)) for i, v in zip(images, variants, strict=True))

    def _report(self, finished: Tensor) -> None:
        if self.watch:
            names = [self.broken_by[i] for i in finished.tolist()]
            found = AttackedImages(self.result[finished], names, *self.passes[:, finished])
            self.watch(finished, found, int(self.steps_left.sum()))
