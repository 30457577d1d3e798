"""Train a network with K+1 outputs, the last of them "reject", and measure its robustness.

    python examples/reject_class.py

The training takes seconds, on noisy stripes (`own.py`). It teaches the network to reject pure noise and blends of both
classes. Any network of that form will do: `RejectClass` says what its last output means.
"""

import torch
from own import images_and_labels
from torch import nn
from torch.nn import functional as F

from multishield import RejectClass, evaluate


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
    network = trained(*images_and_labels("train", 200))
    print(evaluate(RejectClass(network), *images_and_labels("test", 50), eps=8 / 255))
