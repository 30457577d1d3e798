"""Export the shield as one graph with torch.export, and load it where this package is not installed.

    python examples/export.py

Both models must be exportable. The tolerance is part of the graph. The file needs torch alone, and checks no pixels.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

from multishield import MultiShield


class Cosines(nn.Module):
    """In place of CLIP: cosines between an embedding of the image and one of each class, (B,K)."""

    def __init__(self, classes: int):
        super().__init__()
        self.text = nn.Parameter(nn.functional.normalize(torch.randn(classes, 192)))

    def forward(self, x):
        return nn.functional.normalize(x.flatten(1) - 0.5) @ self.text.T


if __name__ == "__main__":
    torch.manual_seed(0)
    images, classifier = torch.rand(100, 3, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    shield = MultiShield(classifier, Cosines(2), tolerance=0.05).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shield.pt2"
        # These two lines. The number of images may differ from the example's, their size may not.
        graph = torch.export.export(shield, (images[:8],), dynamic_shapes=[{0: torch.export.Dim("images", min=2)}])
        torch.export.save(graph, file)
        loaded = torch.export.load(file).module()
    decisions, exported = shield(images).argmax(1), loaded(images).argmax(1)
    equal, rejected = int((decisions == exported).sum()), int((decisions == 2).sum())
    print(f"{equal} of {len(images)} decisions are equal; the shield rejects {rejected} images")
