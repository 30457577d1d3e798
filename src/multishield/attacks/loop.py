"""The loop of all iterative attacks: one batch that stays full, one forward pass for loss and verdict.

A slot of the batch is one try at one image. Broken images leave at once, and a queue fills free slots. Tries that
rarely succeed run side by side, so that few images fill the batch, too. The result of an image depends on the image
alone, not on the batch: on a CPU bit for bit with the portable arithmetic.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from multishield.attacks.losses import evasion_margin
from multishield.attacks.plan import DIVERSE, DIVERSE_STEPS, NO_TRY, Plan
from multishield.attacks.random_streams import keys, uniform
from multishield.attacks.threat_model import Ball, Success, fooled
from multishield.errors import UserError
from multishield.forward import FILL, Outputs, device_of, forward
from multishield.images import AttackedImages

State = dict[str, Tensor]
# Outputs, labels, targets and variants of the slots to losses, each (B,), which the attack raises.
Objective, ASKED = Callable[[Outputs, Tensor, Tensor, Tensor], tuple[Tensor, ...]], ("label", "target", "variant")
# Called after every step: indices of finished images (often none), their results, the most steps that are still to do.
Watch = Callable[[Tensor, AttackedImages, int], None]
# Where memory does not suffice, the batch is halved.
BATCH_SIZE = {"cpu": 128, "cuda": 1024}


class Rule:
    """How an attack moves: from a random point of the ball, by `move`, which a subclass writes.

    A `state` holds per slot "x", "clean", the ball's limits "low" and "high", "stream", "step", "steps", "target", and
    the tensors of `begin`. A rule that sees no hope for a try lowers its "steps".
    """

    needs_gradient = True
    most = 1  # points of a slot that are evaluated side by side, see `Attack._ahead`

    def __init__(self, ball: Ball, steps: int):
        self.ball, self.steps = ball, steps

    def first(self, clean: Tensor, streams: Tensor) -> Tensor:
        """The first point of a try, from clean images and keys of random streams."""
        return self.ball.random(clean, streams)

    def begin(self, x: Tensor, clean: Tensor, streams: Tensor) -> State:
        """The rule's own state at the first point x."""
        return {}

    def inside(self, x: Tensor, state: State) -> Tensor:
        """Points x projected into the balls of their slots."""
        return self.ball.project(x, state["clean"], (state["low"], state["high"]))

    def move(self, state: State, losses: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        """The next x, from the losses and their gradients at this one; updates the rule's own state."""
        raise NotImplementedError


def ascend(model: Callable[[Tensor], Outputs], images: Tensor, labels: Tensor, **settings) -> AttackedImages:
    """Attack each image until it is broken or all its tries have failed. The arguments are the fields of `Attack`."""
    if not len(images):
        none = torch.zeros(0, dtype=torch.long)
        return AttackedImages(images.clone(), [], none, none)
    return Attack(model, images, labels, **settings).run()


def with_gradients(x: Tensor, objective: Objective, out: Outputs, *others: Tensor) -> tuple[tuple, tuple]:
    """Losses of the outputs (the objective takes others, too), and the gradient of each at the pixels x (B,...).

    A loss of one model is not sent back through the others: margins of two models cost one backward pass through each.
    """
    outputs, gradients = out if isinstance(out, tuple) else (out,), []
    leaves = tuple(o.detach().requires_grad_() for o in outputs)
    losses = objective(leaves if isinstance(out, tuple) else leaves[0], *others)
    for loss in losses:
        slopes = torch.autograd.grad(loss.sum(), leaves, retain_graph=True, allow_unused=True)
        used = [i for i, slope in enumerate(slopes) if slope is not None and slope.any()]
        # A weighted sum: `grad_outputs` would import sympy, which takes a second or two.
        total, again = sum((outputs[i] * slopes[i]).sum() for i in used), loss is not losses[-1]
        gradients.append(torch.autograd.grad(total, x, retain_graph=again)[0] if used else torch.zeros_like(x))
    return losses, tuple(gradients)


@dataclass(eq=False)
class Attack:
    """One attack on N images. A slot is a row of every tensor in `slots`; "image" and "variant" name its try.

    Attributes:
        model: pixels to outputs: a module, a bound method of one (a shield's `scores`), or any function.
        images, labels: (N,C,H,W) or (N,D), within the bounds of the ball; (N,).
        ids, seed, tag: name the random stream of each image and try. The tag is the name of the attack, too.
        objective: the losses to be raised. rule: how to move. watch: see `Watch`.
        success: decides on the model's outputs, also whether a clean image is wrong already.
        plan: outputs, labels and indices of clean images to their tries; by default one untargeted try each.
        starts: images (N,...) that tries may begin at. batch_size: slots; they do not change results.
        nearest: return an image that resisted a defence at its point nearest to evasion, not the clean image.
    """

    model: Callable[[Tensor], Outputs]
    images: Tensor
    labels: Tensor
    ids: Tensor
    seed: int
    tag: str
    objective: Objective
    rule: Rule
    success: Success = fooled
    plan: Callable[[Outputs, Tensor, Tensor], Plan] = lambda out, y, index: Plan(torch.full((len(y), 1), -1))
    starts: Sequence[Tensor] = ()
    batch_size: int | None = None
    watch: Watch | None = None
    nearest: bool = False

    def run(self) -> AttackedImages:
        """Work until no try is left."""
        self.device = device_of(getattr(self.model, "__self__", self.model))
        self.batch_size = self.batch_size or BATCH_SIZE[self.device.type]
        self.result, self.broken_by = self.images.clone(), [""] * len(self.images)
        self.margin = torch.full((len(self.images),), -torch.inf)  # at the nearest points
        self.passes = torch.tensor([[1], [0]]).repeat(1, len(self.images))  # one forward each, on the clean image
        self._begin(self._decide_on_clean())
        while self.queue or self.slots:
            self._fill()
            if (evaluated := self._within_memory(self._evaluate)) is not None:
                self._advance(*evaluated)
        return AttackedImages(self.result, self.broken_by, *self.passes)

    def _begin(self, tries: Plan) -> None:
        """Queue the first tries of all images that are not wrong already."""
        self.tries, self.count, self.slots = tries, (tries.target != NO_TRY).sum(1), {}
        variants = range(tries.target.shape[1])
        self.streams = torch.stack([keys(self.seed, f"{self.tag}/{v}", self.ids) for v in variants], 1)
        waiting = torch.tensor([not name for name in self.broken_by]) & (self.count > 0)
        self.queue = deque((image, 0) for image in waiting.nonzero()[:, 0].tolist())
        # The largest number of passes of an image; 0 once it is finished.
        self.bound = torch.where(tries.target != NO_TRY, tries.steps + 1, 0).sum(1) + 1
        self._report((~waiting).nonzero()[:, 0])

    def _within_memory(self, compute: Callable[[], object]):
        """The result of `compute`, or None where memory did not suffice: the batch is halved then."""
        try:
            return compute()
        except torch.OutOfMemoryError:
            if self.batch_size <= FILL:
                given = f"a batch of {FILL} images, the smallest, does not fit into the memory of the device"
                mend = "use a smaller model, or the CPU (CUDA_VISIBLE_DEVICES= in front of the command)"
                raise UserError(f"{given}; {mend}") from None
            self.batch_size //= 2

    @torch.no_grad()
    def _decide_on_clean(self) -> Plan:
        """Decide on the clean images; those that are wrong already are done. Returns the tries of all."""
        plans, start = [], 0
        while start < len(self.images):
            index = torch.arange(start, min(start + self.batch_size, len(self.images)))
            x, y = self.images[index].to(self.device), self.labels[index].to(self.device)
            if (out := self._within_memory(lambda x=x: forward(self.model, x))) is not None:
                for i in self.success(out, y).nonzero()[:, 0].tolist():
                    self.broken_by[start + i] = "clean"
                plans.append(self.plan(out, y, index))
                start += len(index)
        return Plan.joined(plans, self.rule.steps)

    def _fill(self) -> None:
        """Move tries from the queue into the free slots."""
        tries, taken = [], len(self.slots.get("image", ()))
        few = len(self.queue) <= self.batch_size // 2  # the last tries need no batch of their own
        while self.queue and (few or taken + len(tries) < self.batch_size):
            image, first = self.queue.popleft()
            tries += [(image, variant) for variant in range(first, self.tries.end(image, first))]
        if not tries:
            return
        image, variant = (torch.tensor(column) for column in zip(*tries, strict=True))
        new = {"image": image, "variant": variant, "step": torch.zeros_like(image), "label": self.labels[image]}
        of_try = {"target": self.tries.target, "steps": self.tries.steps, "stream": self.streams}
        new |= {name: t[image, variant] for name, t in of_try.items()} | {"clean": self.images[image]}
        new = {name: t.to(self.device) for name, t in new.items()}
        new["low"], new["high"] = self.rule.ball.limits(new["clean"])
        new["x"] = self.rule.first(new["clean"], new["stream"])
        for number, images in enumerate(self.starts):
            slots = (self.tries.start[image, variant] == number).nonzero()[:, 0]
            new["x"][slots] = images[image[slots]].to(new["x"])
        slots = (self.tries.start[image, variant] == DIVERSE).nonzero()[:, 0]
        if len(slots):
            new["x"][slots] = self.diverse({name: t[slots] for name, t in new.items()})
            self.passes.index_add_(1, image[slots], torch.full((2, len(slots)), DIVERSE_STEPS))
        new |= self.rule.begin(new["x"], new["clean"], new["stream"])
        self.slots = {name: torch.cat([self.slots[name], t]) for name, t in new.items()} if self.slots else new

    @torch.enable_grad()
    def diverse(self, state: State) -> Tensor:
        """Points that differ for a defence: a few steps up a random direction of its scores (Tashiro et al. 2020)."""
        x, directions = state["x"], None
        for _ in range(DIVERSE_STEPS):
            x = x.detach().requires_grad_()
            flat = torch.cat([F.normalize(scores.reshape(len(x), -1)) for scores in forward(self.model, x)], 1)
            directions = 2 * uniform(state["stream"] + 2, flat.shape[1]) - 1 if directions is None else directions
            (gradient,) = torch.autograd.grad((directions * flat).sum(), x)
            x = self.rule.inside(x.detach() + self.rule.ball.eps / 4 * self.rule.ball.ascent(gradient), state)
        return x

    def _evaluate(self):
        """Broken slots, the losses of all slots, and their gradients where the rule needs them."""
        needs = self.rule.needs_gradient and bool((self.slots["step"] < self.slots["steps"]).any())
        if len(self.slots["x"]) <= (size := max(FILL, self.batch_size * 3 // 2 // FILL * FILL)):
            return self._pass(self.slots, needs)
        batches = zip(*(t.split(size) for t in self.slots.values()), strict=True)
        passes = [self._pass(dict(zip(self.slots, batch, strict=True)), needs) for batch in batches]
        broken, *others = zip(*passes, strict=True)
        return torch.cat(broken), *(tuple(torch.cat(t) for t in zip(*column, strict=True)) for column in others)

    def _pass(self, s: State, needed: bool):
        """One forward pass over some slots: which are broken, their losses, and the gradients of these."""
        if self.rule.most > 1:
            return self._ahead(s)
        x = s["x"].detach().requires_grad_(needed)
        with torch.set_grad_enabled(needed):
            out = forward(self.model, x)
        asked = (out, *(s[name] for name in ASKED))
        values, gradients = with_gradients(x, self.objective, *asked) if needed else (self.objective(*asked), ())
        self._keep_nearest(s, out)
        return self.success(out, s["label"]), tuple(value.detach() for value in values), gradients

    @torch.no_grad()
    def _ahead(self, s: State):
        """The same for a random search, with four batches in a pass: slots look ahead to the first point of note."""
        count = 1 if self.nearest else max(1, min(self.rule.most, 4 * self.batch_size // len(s["x"])))
        many = {name: s[name].repeat_interleave(count, 0) for name in s if name not in ("image", "steps", "best")}
        many["step"] += torch.arange(count, device=self.device).repeat(len(s["x"]))
        out = forward(self.model, points := self.rule.points(many))
        (losses,), broken = self.objective(out, *(many[n] for n in ASKED)), self.success(out, many["label"])
        chosen = self.rule.first_of_note(s, losses.masked_fill(broken, torch.inf).view(-1, count))
        self.passes[0].index_add_(0, s["image"].cpu(), chosen.cpu())
        rows = torch.arange(len(chosen), device=self.device) * count + chosen
        s["x"], s["step"] = points[rows], s["step"] + chosen
        self._keep_nearest(s, out)
        return broken[rows], (losses[rows],), ()

    def _keep_nearest(self, s: State, out: Outputs) -> None:
        if self.nearest:
            margins, images = evasion_margin(out, s["label"], self.model.__self__).cpu(), s["image"].cpu()
            for slot in (margins > self.margin[images]).nonzero()[:, 0].tolist():
                if margins[slot] > self.margin[image := images[slot]]:  # an image may be in several slots
                    self.margin[image], self.result[image] = margins[slot], s["x"][slot].detach().cpu()

    def _advance(self, broken: Tensor, losses: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> None:
        """Take verdicts in, let broken and used up tries leave, and move the others."""
        image, ended = self.slots["image"].cpu(), self.slots["step"] >= self.slots["steps"]
        self.passes[0].index_add_(0, image, torch.ones_like(image))
        if self.rule.needs_gradient:
            self.passes[1].index_add_(0, image, (~ended).long().cpu())  # none for the last look at a try
        finished = image[:0]
        if (broken | ended).any():
            leaving, finished = self._leave(image, broken.cpu(), ended.cpu())
            going = (~leaving).nonzero()[:, 0].to(broken.device)
            self.slots = {name: t[going] for name, t in self.slots.items()} if len(going) else {}
            losses, gradients = tuple(t[going] for t in losses), tuple(t[going] for t in gradients)
        self._report(finished)
        if self.slots:
            self.slots["x"] = self.rule.move(self.slots, losses, gradients)
            self.slots["step"] = self.slots["step"] + 1

    def _leave(self, images: Tensor, broken: Tensor, ended: Tensor) -> tuple[Tensor, Tensor]:
        """Keep broken images, queue the next tries of others; returns the slots that leave, and the finished images."""
        finished = []
        for slot in broken.nonzero()[:, 0].tolist():
            image = int(images[slot])
            if not self.broken_by[image]:
                self.result[image], self.broken_by[image] = self.slots["x"][slot].cpu(), self.tag
                finished.append(image)
        leaving = ended | torch.isin(images, torch.tensor(finished, dtype=torch.long))
        resisted = dict(zip(images.tolist(), self.slots["variant"].tolist(), strict=True))
        for image in {*images[~leaving].tolist(), *finished}:
            del resisted[image]
        for image, variant in resisted.items():
            if (over := self.tries.end(image, variant)) < self.count[image]:
                self.queue.appendleft((image, over))
            else:
                finished.append(image)
        return leaving, torch.tensor(finished, dtype=torch.long)

    def _report(self, finished: Tensor) -> None:
        if self.watch:
            self.bound[finished] = 0
            names = [self.broken_by[i] for i in finished.tolist()]
            attacked = AttackedImages(self.result[finished], names, *self.passes[:, finished])
            self.watch(finished, attacked, int((self.bound - self.passes[0]).clamp_min(0).sum()))
