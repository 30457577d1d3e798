"""An own network with K+1 outputs, the last of them trained to mean "reject": is that robust?

    python examples/reject_class.py

Trains for some seconds on noisy stripes (`own.py`), with pure noise and blends of both classes as what is to be
rejected. Any network of that form can stand here; `evaluate` needs nothing but its outputs.
"""

import torch
from own import stripes
from torch import nn
from torch.nn import functional as F

from multishield import evaluate


def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N,3,32,32) float32 in [0,1], and labels."""
    source = stripes(None, split)
    images = torch.stack([torch.from_numpy(source.read(i)) for i in range(len(source.labels))])
    return images.permute(0, 3, 1, 2).float() / 255, source.labels


def trained(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """A small convolutional network: class 0, class 1, reject."""
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)),
    )
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(150):
        pick = torch.randint(len(images), (64,))
        blend = 0.5 * images[pick] + 0.5 * images[torch.randint(len(images), (64,))].transpose(2, 3)
        junk = torch.cat([torch.rand_like(blend[:32]), blend[32:]])
        outputs = network(torch.cat([images[pick], junk]))
        loss = F.cross_entropy(outputs, torch.cat([labels[pick], torch.full((64,), 2)]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


if __name__ == "__main__":
    torch.manual_seed(0)
    network = trained(*load("train"))
    images, labels = load("test")
    print(evaluate(network, images[:50], labels[:50], eps=8 / 255))
