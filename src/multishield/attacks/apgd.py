"""Auto-PGD (Croce & Hein 2020, algorithm 1) with the losses CE, DLR and targeted DLR, or any other."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from multishield.attacks import losses
from multishield.attacks.loop import Rule, State, ascend
from multishield.attacks.plan import Plan
from multishield.attacks.threat_model import Ball, per_image
from multishield.images import AttackedImages

# A targeted try is given up where its gap to success is larger than this share of its gain (benchmarks/README.md). It
# is looked at once, after so many steps or at the first checkpoint: later, its gap is smaller and its gain larger.
HOPELESS, LOOKED_AT = 0.5, 10


def checkpoints(steps: int) -> list[int]:
    """The steps at which progress is judged: p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    return sorted({math.ceil(round(q * steps, 6)) for q in p[1:] if q < 1})  # rounded: 0.57 * 100 is 57.00...01


class AutoSteps(Rule):
    """The steps of Auto-PGD: momentum, and a size that is halved where the loss does not rise enough.

    A targeted try succeeds at the loss `aim`; one without hope of it is given up (`HOPELESS`).
    """

    rho, momentum = 0.75, 0.75  # the share of steps that must raise the loss; the paper's alpha

    def __init__(self, ball: Ball, steps: int, aim: float | None = None):
        super().__init__(ball, steps)
        self.aim, self.look = aim, min(LOOKED_AT, *checkpoints(steps))
        # At a checkpoint the number of steps since the last one, elsewhere 0.
        self.interval = torch.zeros(steps + 1)
        for last, now in pairwise([0, *checkpoints(steps)]):
            self.interval[now] = now - last

    def begin(self, x: Tensor, clean: Tensor, streams: Tensor) -> State:
        values = {"best": -torch.inf, "best_at_judgement": -torch.inf, "last": torch.inf, "began": 0.0}
        values |= {"rises": 0.0, "size": 2 * self.ball.eps, "halved": True}
        state = {name: torch.full((len(x),), value, device=x.device) for name, value in values.items()}
        return state | {"previous": x.clone(), "best_x": x.clone(), "best_gradient": torch.zeros_like(x)}

    def move(self, state: State, values: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        value, gradient = values[0], gradients[0]
        state["began"] = torch.where(state["step"] == 0, value, state["began"])
        state["rises"] = state["rises"] + (value > state["last"])
        state["last"] = value
        better = value > state["best"]
        state["best"] = torch.where(better, value, state["best"])
        for name, new in (("best_x", state["x"]), ("best_gradient", gradient)):
            torch.where(per_image(better, new), new, state[name], out=state[name])
        if self.aim is not None:
            gap, gained = self.aim - state["best"], state["best"] - state["began"]
            hopeless = (state["step"] == self.look) & (state["target"] >= 0) & (gap > HOPELESS * gained)
            state["steps"] = torch.where(hopeless, state["step"] + 1, state["steps"])  # it is looked at once more
        x, gradient = self._judge(state, gradient)
        # In place: memory for each term would cost more than the sums. z is x + size * direction, inside the ball.
        z = self.inside(self.ball.ascent(gradient).mul_(per_image(state["size"], x)).add_(x), state)
        alpha = per_image(torch.where(state["step"] > 0, self.momentum, 1.0), x)
        inertia = (x - state["previous"]).mul_(1 - alpha)  # x + alpha * (z - x) + (1 - alpha) * (x - previous)
        state["previous"] = x
        return self.inside(z.sub_(x).mul_(alpha).add_(x).add_(inertia), state)

    def _judge(self, state: State, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """At a checkpoint: halve the step and go back to the best point where there is too little progress."""
        interval = self.interval.to(state["step"].device)[state["step"]]
        judged = interval > 0
        if not judged.any():
            return state["x"], gradient
        stuck = ~state["halved"] & (state["best"] <= state["best_at_judgement"])
        halve = judged & ((state["rises"] < self.rho * interval) | stuck)
        state["size"] = torch.where(halve, state["size"] / 2, state["size"])
        for name, value in (("halved", halve), ("best_at_judgement", state["best"]), ("rises", 0.0)):
            state[name] = torch.where(judged, value, state[name])
        back = per_image(halve, gradient)
        return torch.where(back, state["best_x"], state["x"]), torch.where(back, state["best_gradient"], gradient)


def apgd(
    model: nn.Module, images: Tensor, labels: Tensor, *, ball: Ball, loss="ce", steps=100, targets=9, **loop
) -> AttackedImages:
    """Maximise a loss in the ball around each image, with so many gradient steps per target.

    The model takes pixels to outputs (B,C). The loss is "ce", "dlr", "dlr-targeted" (the likeliest `targets` wrong
    classes, one after the other, at most C-1), or a function of outputs and labels to values (B,). Raises ValueError
    for an unknown loss, or for fewer outputs than it needs. For the other arguments see `multishield.attacks`.
    """
    named = {"ce": losses.ce, "dlr": losses.dlr, "dlr-targeted": losses.dlr_targeted}
    function = named.get(loss, loss)
    if isinstance(function, str):
        raise ValueError(f"loss is {loss!r}; accepted are {', '.join(named)}, or a function")
    targeted = function is losses.dlr_targeted

    def objective(out: Tensor, y: Tensor, target: Tensor, variant: Tensor) -> tuple[Tensor]:
        return (function(out, y, target) if targeted else function(out, y),)

    def plan(out: Tensor, y: Tensor, index: Tensor) -> Plan:
        return Plan(likeliest(out, y, targets) if targeted else torch.full((len(y), 1), -1))

    options = {"tag": f"apgd-{loss}", "rule": AutoSteps(ball, steps), "objective": objective, "plan": plan}
    return ascend(model, images, labels, **options | loop)


def likeliest(scores: Tensor, labels: Tensor, count: int) -> Tensor:
    """The `count` wrong classes (at most K-1) with the largest score, best first: (B,count)."""
    count = min(count, scores.shape[1] - 1)
    return scores.scatter(1, labels.view(-1, 1), -torch.inf).topk(count, dim=1).indices
