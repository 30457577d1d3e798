"""Small models whose worst case is known, and images for them."""

import torch
from torch import nn

from multishield.defences import RejectClass
from multishield.shield import MultiShield


class Linear(nn.Module):
    """Scores that are linear in the pixels, around grey, so that every class wins somewhere; `then` changes them."""

    def __init__(self, classes=4, pixels=48, scale=1.0, seed=0, then=lambda z: z):
        super().__init__()
        weight = scale * torch.randn(classes, pixels, generator=torch.Generator().manual_seed(seed))
        self.weight, self.then = nn.Parameter(weight, requires_grad=False), then

    def forward(self, x):
        return self.then((x.flatten(1) - 0.5) @ self.weight.T)

    def reach(self, eps):
        """By how much z_t - z_y can grow within eps (Linf), for all t and y, where the ball stays inside [0,1]."""
        return eps * (self.weight[:, None] - self.weight[None]).abs().sum(2)


def reject_class(change=lambda out: out):
    """A model of three classes and "reject", whose output is constant; `change` changes the outputs."""
    return RejectClass(Linear(3, then=lambda z: change(nn.functional.pad(z, (0, 1), value=1.0))))


class InPlace(nn.Module):
    """A model that normalises the pixels that it is given, as some do, without a copy."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.sub_(0.25).div_(0.5))


class Brightness(nn.Module):
    """Class 1 where the image is brighter than `boundary`, else class 0; the scores say by how much, times `scale`."""

    def __init__(self, scale=1.0, boundary=0.5):
        super().__init__()
        self.scale, self.boundary = scale, boundary

    def forward(self, x):
        level = self.scale * (x.mean((1, 2, 3)) - self.boundary)
        return torch.stack([-level, level], 1)


class Convolutions(nn.Module):
    """A network with the layers of real ones, for images of 8 pixels a side."""

    def __init__(self, classes=5):
        super().__init__()
        layers = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, classes)
        self.layers = nn.Sequential(*layers).eval().requires_grad_(False)

    def forward(self, x):
        return self.layers(x - 0.5)


def linear_shield(classes=4, pixels=48, tolerance=0.001):
    return MultiShield(Linear(classes, pixels, seed=1), Linear(classes, pixels, 0.02, seed=2), tolerance)


def inside(n, side=4):
    """Random images around which a ball of 0.1 lies inside [0,1]."""
    return 0.1 + 0.8 * torch.rand(n, 3, side, side)


def grey(*levels, side=4):
    """Images of one level each."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, side, side).clone()
