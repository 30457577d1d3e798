"""Square Attack (Andriushchenko et al. 2020): a random search that sees outputs and no gradient.

For L2 it takes the squares of L-inf, scaled back to the ball, which is simpler than the authors' proposals.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from multishield.attacks.loop import Rule, State, ascend
from multishield.attacks.losses import margin
from multishield.attacks.random_streams import uniform
from multishield.attacks.threat_model import Ball, per_image
from multishield.images import AttackedImages

# The share of the image that a square covers, halved after each of these queries (the paper's schedule for 10,000
# queries, which AutoAttack does not rescale to its 5,000).
SHARE, HALVED_AFTER = 0.8, (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# The loss rises about as much with each doubling of the queries. After all but the first of these queries the search
# ends where PATIENCE times that pace would not make it positive by the last query.
LOOKED_AT = (400, 800, 1600, 3200, 6400, 2**31)
PATIENCE = 2.0


class RandomSquares(Rule):
    """Propose the best point so far with one square of +-eps per channel; keep it if it raises the loss."""

    needs_gradient, most = False, 2

    def first(self, clean: Tensor, streams: Tensor) -> Tensor:
        """Vertical stripes of +-eps."""
        c, h, w = (1, 1, *clean.shape[1:])[-3:]  # a vector is one row (1,1,D)
        stripes = (2 * uniform(streams, c * w).view(-1, c, 1, w) - 1).sign().expand(-1, c, h, w).reshape(clean.shape)
        pixel = self.ball.eps if self.ball.norm == "Linf" else self.ball.eps / math.sqrt(clean[0].numel())
        return self.ball.project(clean + pixel * stripes, clean)  # for L2 each pixel has its share of the radius

    def begin(self, x: Tensor, clean: Tensor, streams: Tensor) -> State:
        best = torch.full((len(x),), -torch.inf, device=x.device)
        return {"best_x": clean.clone(), "best": best, "best_at_half": best.clone()}

    def move(self, state: State, losses: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        self.most = min(32, 2 + int(state["step"].min()) // 16)  # at first squares are kept: others would be waste
        better = losses[0] > state["best"]
        state["best"] = torch.where(better, losses[0], state["best"])
        state["best_x"] = torch.where(per_image(better, state["x"]), state["x"], state["best_x"])
        self._give_up(state)
        return state["x"]  # the next ones are `points`

    def first_of_note(self, state: State, losses: Tensor) -> Tensor:
        """The first of `points`, in (B,count), that raises the loss, or at which the pace is looked at."""
        better = losses > state["best"][:, None]
        first = torch.where(better.any(1), better.int().argmax(1), losses.shape[1] - 1)
        looks = torch.tensor(LOOKED_AT, device=first.device)
        return first.minimum(looks[torch.bucketize(state["step"], looks)].minimum(state["steps"]) - state["step"])

    def points(self, state: State) -> Tensor:
        """The best points so far, each with the square of its step; before the first step x itself."""
        c, h, w = (1, 1, *state["clean"].shape[1:])[-3:]
        u = uniform(state["stream"] + state["step"], 2 + c)
        areas = [SHARE * 0.5**n * h * w for n in range(len(HALVED_AFTER) + 1)]
        sides = [round(area if h == 1 else math.sqrt(area)) for area in areas]
        halvings = torch.bucketize(state["step"] - 1, torch.tensor(HALVED_AFTER, device=u.device))
        side = torch.tensor(sides, device=u.device).clamp(1, w if h == 1 else min(h, w))[halvings]
        # The last position is left out, as in the authors' code, but for a square as large as the image.
        top, left = ((u[:, i] * (n - side).clamp_min(1)).long() for i, n in ((0, h), (1, w)))
        offsets = (torch.arange(n, device=u.device) - start[:, None] for n, start in ((h, top), (w, left)))
        rows, columns = ((offset >= 0) & (offset < side[:, None]) for offset in offsets)  # (B,H) and (B,W)
        square = (rows[:, :, None] & columns[:, None, :])[:, None] * (2 * u[:, 2:] - 1).sign()[:, :, None, None]
        step = 2 * self.ball.eps * square
        if self.ball.norm == "L2":  # all of the radius in the square at first, as far as it is not spent elsewhere
            step = self.ball.eps * square / per_image((c * side * side.clamp(max=h)).float().sqrt(), square)
        x = self.inside(state["best_x"] + step.reshape(state["clean"].shape), state)
        return torch.where(per_image(state["step"] == 0, x), state["x"], x)

    def _give_up(self, state: State) -> None:
        """Look at the pace since the last look, which was at half the queries."""
        step, best = state["step"], state["best"]
        looked = torch.isin(step, torch.tensor(LOOKED_AT, device=step.device))
        pace, doublings = best - state["best_at_half"], (self.steps / step.clamp_min(1)).log2()
        hopeless = looked & (step > LOOKED_AT[0]) & (best + PATIENCE * pace * doublings <= 0)
        state["steps"] = torch.where(hopeless, step + 1, state["steps"])
        state["best_at_half"] = torch.where(looked, best, state["best_at_half"])


def square(
    model: Callable, images: Tensor, labels: Tensor, *, ball: Ball, loss: Callable = margin, queries=5000, **loop
) -> AttackedImages:
    """Random search for a point of the ball at which the model's decision is wrong, with at most `queries` per image.

    The model takes pixels to outputs, the loss outputs and labels to values (B,), >= 0 where the decision is wrong. To
    attack a model that abstains, give its `scores`, with `success=evades(shield)` and
    `loss=partial(evasion_margin, defence=shield)`. For the other arguments see `multishield.attacks`.
    """
    options = {"tag": "square", "rule": RandomSquares(ball, queries)}
    return ascend(model, images, labels, objective=lambda out, y, *_: (loss(out, y),), **options | loop)
