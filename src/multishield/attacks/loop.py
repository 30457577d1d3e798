"""The loop of all iterative attacks: one batch that stays full, one forward for loss and verdict.

Every slot of the batch is one try at one image and has its own step count, state and random stream. An image that is
broken leaves at once, a try that has used up its steps is followed by the next one, and free slots are filled from the
queue. Tries of an image that rarely succeed go side by side, so that the few images they are for fill the batch, too.
So hardware stays busy to the end, and an image's result depends on nothing but the image: not on the batch size, the
order, or its neighbours. On a CPU that holds bit for bit with the portable arithmetic; otherwise kernels are chosen by
the size of the batch, and last bits may differ.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from multishield.attacks.gradient_model import Mover, affordable, with_gradients
from multishield.attacks.plan import NO_TRY, Plan
from multishield.attacks.random_streams import keys
from multishield.attacks.threat_model import Success
from multishield.errors import UserError
from multishield.forward import SMALLEST, Outputs, device_of, forward
from multishield.images import AttackedImages

State = dict[str, Tensor]
# Outputs, labels, targets and variants of the slots to losses, each (B,), which the attack raises.
Objective = Callable[[Outputs, Tensor, Tensor, Tensor], tuple[Tensor, ...]]
# Called after every step with the indices of the images that it has finished (often none), what became of them, and
# the number of steps that are still to do, at most.
Watch = Callable[[Tensor, AttackedImages, int], None]


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
        batch_size: slots, and at the end up to half as many more, or more images with tries side by side, in several
            passes; by default as many as pay and as memory has room for. It has no influence on results.
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
        self.tries = self.plan.tries()
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
            if evaluated is not None:
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
        return Plan.of_all(parts, self.rule.steps)

    def _most(self) -> int:
        """Slots in one pass. The last few tries come in beyond the batch: left for later they would keep the hardware
        for as long as a full one. Where memory is short, none do."""
        return self.batch_size + self.batch_size // 2 if self.batch_size > SMALLEST else self.batch_size

    def _fill(self) -> None:
        """New tries from the queue into the free slots."""
        tries, taken = [], len(self.slots.get("image", ()))
        few = len(self.queue) <= self._most() - self.batch_size
        while self.queue and (few or taken + len(tries) < self.batch_size):
            image, first = self.queue.popleft()
            tries += [(image, variant) for variant in range(first, self.plan.end(image, first))]
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
        """Which slots are broken, the losses, and their gradients where the rule wants them."""
        needs = self.rule.needs_gradient and bool((self.slots["step"] < self.slots["steps"]).any())
        parts = zip(*(t.split(self._most()) for t in self.slots.values()), strict=True)
        looks = [self._look(objective, dict(zip(self.slots, part, strict=True)), needs) for part in parts]
        broken, *others = zip(*looks, strict=True)
        return torch.cat(broken), *(tuple(torch.cat(t) for t in zip(*part, strict=True)) for part in others)

    def _look(self, objective: Objective, s: State, needs: bool):
        """One forward over some slots, and their gradients, for `_evaluate`."""
        x = s["x"].detach().requires_grad_(needs)
        with torch.set_grad_enabled(needs):
            out = self.mover(x)

        def losses(out):
            return objective(out, s["label"], s["target"], s["variant"])

        values, gradients = with_gradients(x, out, losses) if needs else (losses(out), ())
        if self.nearness:
            self._keep_nearest(s, self.nearness(out, s["label"]).tolist())
        return self._verdict(s, out), tuple(value.detach() for value in values), gradients

    def _keep_nearest(self, s: State, near: list[float]) -> None:
        """Keep the images of slots that are nearer to evasion than theirs ever was."""
        for slot, image in enumerate(s["image"].tolist()):
            if near[slot] > self.nearest[image]:
                self.nearest[image], self.result[image] = near[slot], s["x"][slot].detach().cpu()

    @torch.no_grad()
    def _verdict(self, s: State, out: Outputs) -> Tensor:
        """Which slots are broken, by the model itself: it looks again at what the twin calls broken, and at the last
        image of every try."""
        twin_says = self.success(out, s["label"])
        if self.mover.exact:
            return twin_says
        broken, i = torch.zeros_like(twin_says), (twin_says | (s["step"] >= s["steps"])).nonzero()[:, 0]
        if len(i):
            broken[i] = self.success(forward(self.mover.model, s["x"][i]), s["label"][i])
        return broken

    def _advance(self, broken: Tensor, losses: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> None:
        """Take verdicts in, let broken and used up tries leave, and move what goes on."""
        at, ended = self.slots["image"].cpu(), self.slots["step"] >= self.slots["steps"]
        self.passes[0].index_add_(0, at, torch.ones_like(at))
        if self.rule.needs_gradient:
            self.passes[1].index_add_(0, at, (~ended).long().cpu())  # none for the last look at a try
        self.steps_left.index_add_(0, at, -torch.ones_like(at))
        finished = at[:0]
        if (broken | ended).any():
            leaving, finished = self._leave(at, broken.cpu(), ended.cpu())
            going = (~leaving).to(broken.device)
            self.slots = {name: t[going] for name, t in self.slots.items()} if going.any() else {}
            losses, gradients = tuple(t[going] for t in losses), tuple(t[going] for t in gradients)
        self._report(finished)
        if self.slots:
            self.slots["x"] = self.rule.move(self.slots, losses, gradients)
            self.slots["step"] = self.slots["step"] + 1

    def _leave(self, at: Tensor, broken: Tensor, ended: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what the first of an image's broken tries has found, and queue the next tries of images that have
        resisted. Returns which slots leave, and the images that are finished."""
        variants, finished = self.slots["variant"].tolist(), []
        for slot in broken.nonzero()[:, 0].tolist():
            image = int(at[slot])
            if not self.broken_by[image]:
                self.result[image], self.broken_by[image] = self.slots["x"][slot].cpu(), self.name
                self.steps_left[image] = 0
                finished.append(image)
        leaving = ended | torch.isin(at, torch.tensor(finished, dtype=torch.long))
        working = {*at[~leaving].tolist(), *finished}
        for slot in leaving.nonzero()[:, 0].tolist():
            if (image := int(at[slot])) not in working:
                working.add(image)
                over = self.plan.end(image, variants[slot])
                self.steps_left[image] = self.from_try[image, over]  # a rule may have given up early
                if over < self.tries[image]:
                    self.queue.appendleft((image, over))
                else:
                    finished.append(image)
        return leaving, torch.tensor(finished, dtype=torch.long)

    def _report(self, finished: Tensor) -> None:
        if self.watch:
            names = [self.broken_by[i] for i in finished.tolist()]
            found = AttackedImages(self.result[finished], names, *self.passes[:, finished])
            self.watch(finished, found, int(self.steps_left.sum()))
