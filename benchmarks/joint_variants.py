"""Ways to drive two models to the same wrong class, compared at the same number of steps.

    python benchmarks/joint_variants.py CLASSIFIER [--images N] [--steps N]

Run it in a project whose pipeline has run. It prints a Markdown table: robust accuracy of the shield after each way
(lower is stronger), and passes per image. `multishield.attacks.joint` is the first line.
"""

import argparse

import torch
from torch.nn import functional as F

from multishield.attacks.apgd import AutoSteps, likeliest
from multishield.attacks.joint import StepTowardsWeakerModel, target_margins, targets_in_turn
from multishield.attacks.loop.loop import ascend
from multishield.attacks.loop.random_streams import keys
from multishield.attacks.loop.result import AttackedImages, per_image
from multishield.attacks.threat_model import Ball, evades
from multishield.data import splits
from multishield.evaluation.scenarios import load_shield
from multishield.params import Params
from multishield.storage.paths import artifacts

# Logits per unit of cosine: what CLIP itself was trained with, at most.
CLIP_SCALE = 100


def log_probabilities(scores):
    """log softmax(z) and log softmax(s c), each (B,K)."""
    z, c = scores
    return F.log_softmax(z, 1), F.log_softmax(CLIP_SCALE * c, 1)


class Signed(StepTowardsWeakerModel):
    """Weaker's momentum and step sizes with another direction: `direction(state, losses, gradients of length one)`."""

    def __init__(self, ball, steps, direction):
        super().__init__(ball, steps)
        self.direction = direction

    def move(self, state, losses, gradients):
        units = [g / per_image(self.ball.slope(g)) for g in gradients]
        state["velocity"] = self.decay * state["velocity"] + self.direction(state, losses, units)
        size = self.ball.eps / 4 * (1 - 0.9 * state["step"] / self.steps)
        return self.ball.project(state["x"] + per_image(size) * self.ball.ascent(state["velocity"]), state["clean"])


class WarmStart(StepTowardsWeakerModel):
    """Weaker from the last images of another attack where there are some, else from a random point."""

    def __init__(self, ball, steps, images_by_stream):
        super().__init__(ball, steps)
        self.images = images_by_stream

    def start(self, clean, streams):
        state = super().start(clean, streams)
        known = [self.images.get(int(s)) for s in streams]
        state["x"] = torch.stack([x if k is None else k for x, k in zip(state["x"], known, strict=True)])
        return state


def the_sum(state, losses, units):
    return sum(units)


def alternating(state, losses, units):
    return torch.where(per_image(state["step"] % 2 == 0), *units)


def orthogonal(state, losses, units):
    """The direction of the model that has not reached the target, the classifier's first, less its part along the
    other's (Orthogonal PGD, Bryniarski et al. 2022)."""
    z, c = (u.flatten(1) for u in units)

    def without(a, b):
        return a - (a * b).sum(1, keepdim=True) / (b * b).sum(1, keepdim=True).clamp_min(1e-30) * b

    return torch.where((losses[0] <= 0)[:, None], without(z, c), without(c, z)).view_as(units[0])


def smaller(ball):
    """Combine: the margin that is the smaller one, each in units of its slope."""

    def combine(state, margins, gradients):
        z, c = (m / ball.slope(g) for m, g in zip(margins, gradients, strict=True))
        units = [g / per_image(ball.slope(g)) for g in gradients]
        return torch.minimum(z, c), torch.where(per_image(z <= c), *units)

    return combine


class Bench:
    """One classifier's shield, its images, and the plans of targets."""

    def __init__(self, name, images, targets):
        self.params = Params.load()
        self.shield = load_shield(name, self.params.multishield.tolerance)
        self.data, self.eps = splits.load_split("evaluation")[:images], self.params.threat_model.eps
        self.name, self.targets, self.ball = name, targets, Ball(self.eps)

    def margins(self, scores, y, target, variant):
        return target_margins(scores, target, self.shield.tolerance)

    def sum_of_logs(self, scores, y, target, variant):
        return (sum(log_probabilities(scores)).gather(1, target[:, None])[:, 0],)

    def both_logs(self, scores, y, target, variant):
        return tuple(s.gather(1, target[:, None])[:, 0] for s in log_probabilities(scores))

    def order(self, by="in turn", count=None):
        """Targets by what one model or both think of the clean image."""
        count = count or self.targets

        def plan(scores, y):
            if by == "in turn":
                return targets_in_turn(scores, y, count)
            z, c = scores
            rank = {"sum": sum(log_probabilities(scores)), "classifier": z, "clip": c, "random": torch.rand_like(z)}
            return likeliest(rank[by], y, count)

        return plan

    def unaware(self):
        """Scenario 2's images by the name of the first try's random stream."""
        streams = keys(0, "joint/0", self.data.ids).tolist()
        images = AttackedImages.load(artifacts("baseline", self.name) / "attacked.safetensors").images
        return dict(zip(streams, images[: len(self.data)], strict=True))

    def row(self, what, rule, objective=None, plan=None) -> None:
        """Run one way, print its line."""
        torch.manual_seed(0)
        data = self.data
        result = ascend(
            self.shield.scores,
            data.pixels,
            data.labels,
            ids=data.ids,
            seed=0,
            tag="joint",
            success=evades(self.shield),
            objective=objective or self.margins,
            rule=rule,
            where=next(self.shield.parameters()).device,
            plan=plan or self.order(),
        )
        passes = result.forwards.float().mean()
        print(f"| {what} | {(~result.success).float().mean():.1%} | {passes:.0f} |", flush=True)


def compare(b: Bench, steps: int) -> None:
    """Print every row: directions, then targets against steps, then orders of the targets."""
    ball = b.ball
    b.row("each step for the model further from its boundary", StepTowardsWeakerModel(ball, steps))
    b.row("... from scenario 2's images for the first target", WarmStart(ball, steps, b.unaware()))
    b.row("sum of both gradients, each of length one", Signed(ball, steps, the_sum))
    b.row("the two in turn", Signed(ball, steps, alternating))
    b.row("orthogonal projections", Signed(ball, steps, orthogonal))
    b.row("sum of log-probabilities", Signed(ball, steps, the_sum), b.sum_of_logs)
    b.row("sum of log-probabilities, gradients of length one", Signed(ball, steps, the_sum), b.both_logs)
    b.row("APGD on the sum of log-probabilities", AutoSteps(ball, steps), b.sum_of_logs)
    b.row("APGD on the smaller margin", AutoSteps(ball, steps, combine=smaller(ball)))
    total = b.targets * steps
    for count in (1, 2, 5, 9):
        rule = StepTowardsWeakerModel(ball, total // count)
        b.row(f"first way, {count} x {total // count} steps", rule, plan=b.order(count=count))
    orders = {"classifier": "the classifier", "clip": "CLIP", "sum": "the sum of log-probabilities", "random": "chance"}
    for by, words in orders.items():
        b.row(f"first way, targets ordered by {words}", StepTowardsWeakerModel(ball, steps), plan=b.order(by))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--targets", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="per target")
    options = parser.parse_args()
    bench = Bench(options.classifier, options.images, options.targets)
    print(f"{options.classifier}, N = {len(bench.data)}, {options.targets} targets x {options.steps} steps\n")
    print("| way | robust accuracy | forward passes per image |\n|---|---:|---:|")
    compare(bench, options.steps)


if __name__ == "__main__":
    main()
