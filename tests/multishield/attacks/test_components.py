"""Attacks on the parts of a defence, and the attacker who wants rejection, against closed forms."""

import torch
from torch import nn

from multishield.attacks.components import denial, one_margin
from multishield.defences import ConfidenceThreshold, Unanimity, Undefended

EPS = 8 / 255


class Linear(nn.Module):
    """Two classes: the score of the second is linear in the pixels, around grey."""

    def __init__(self, seed):
        super().__init__()
        self.weight = torch.randn(48, generator=torch.Generator().manual_seed(seed))

    def forward(self, x):
        score = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([-score, score], 1)

    def reach(self) -> float:
        """By how much the leading class's lead can fall within EPS: the ball stays inside [0,1] in these tests."""
        return float(2 * EPS * self.weight.abs().sum())


def images(n=300):
    return 0.1 + 0.8 * torch.rand(n, 3, 4, 4)


def lead_of(model, x):
    return (model(x)[:, 0] - model(x)[:, 1]).abs()


def agree(found, possible, sure):
    """The attack finds what is possible, and claims nothing else; a hair's breadth decides nothing."""
    assert 0.1 < possible.float().mean() < 0.9, "both cases occur"
    assert torch.equal(found.success[sure], possible[sure])


def test_each_part_alone_is_broken_exactly_where_its_closed_form_says():
    models, x = [Linear(1), Linear(2)], images()
    defence = Unanimity(models)
    for part, model in enumerate(models):
        y = model(x).argmax(1)
        distance = lead_of(model, x) - model.reach()
        options = {"eps": EPS, "seed": 0, "ids": torch.arange(len(x)), "steps": 50}
        found = one_margin(defence, x, y, part=part, tag=f"on part {part}", **options)
        agree(found, distance <= 0, distance.abs() > 1e-3)
        assert (model(found.images).argmax(1) != y)[found.success].all()


def test_denial_reaches_exactly_what_is_near_the_region_of_rejection():
    model, x, threshold = Linear(1), images(), 1.0
    defence = ConfidenceThreshold(model, threshold)
    y = model(x).argmax(1)
    distance = lead_of(model, x) - threshold - model.reach()
    found = denial(defence, x, y, eps=EPS, seed=0, ids=torch.arange(len(x)), steps=50)
    agree(found, distance < 0, distance.abs() > 1e-3)
    assert (defence(found.images).argmax(1) == 2)[found.success].all()
    assert (found.images - x).abs().max() <= EPS + 1e-6


def test_targets_without_hope_are_given_up_and_near_ones_are_not():
    """Scores of three classes, linear: what is beyond reach costs a fifth of the steps, and no verdict."""

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.randn(3, 48, generator=torch.Generator().manual_seed(2))

        def forward(self, x):
            return (x.flatten(1) - 0.5) @ self.weight.T

    model, x = Three(), images()
    y, defence = model(x).argmax(1), Undefended(model)
    reach = EPS * (model.weight[:, None] - model.weight[None]).abs().sum(2)[y]  # (B,3): how far each class can come up
    gap = model(x).gather(1, y[:, None]) - model(x) - reach
    nearest = gap.scatter(1, y[:, None], torch.inf).amin(1)
    options = {"eps": EPS, "seed": 0, "ids": torch.arange(len(x)), "steps": 100, "targets": 2}
    left = []
    found = one_margin(
        defence, x, y, part=0, tag="on the classifier", watch=lambda i, f, steps: left.append(steps), **options
    )
    agree(found, nearest <= 0, nearest.abs() > 1e-3)
    beyond = (gap.scatter(1, y[:, None], torch.inf) > reach).all(1)  # more is missing than can be gained
    assert beyond.sum() > 10
    both_untargeted, given_up = 2 * 101, 2 * 24
    assert (found.forwards[beyond] <= 1 + both_untargeted + given_up).all()
    assert left == sorted(left, reverse=True), "the progress line never goes back"
    assert left[-1] == 0
