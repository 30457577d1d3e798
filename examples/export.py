"""Export the shield as one graph with torch.export, and load it where this package is not installed.

    python examples/export.py

Both models must be exportable. The tolerance is part of the graph. The loaded file needs torch alone. It does not check
that pixels lie in [0,1].
"""

import tempfile
from pathlib import Path

import torch
from own import images_and_labels, neighbours, stripes_clip

from multishield import MultiShield, align_classes

if __name__ == "__main__":
    images, _ = images_and_labels("test", 50)
    clip = align_classes(stripes_clip(), ["upright stripes", "level stripes"], ["a photo of {}"])
    shield = MultiShield(neighbours(classes=2), clip).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shield.pt2"
        # These two lines. The number of images may differ from the example's, their size may not.
        graph = torch.export.export(shield, (images[:8],), dynamic_shapes=[{0: torch.export.Dim("images", min=2)}])
        torch.export.save(graph, file)
        loaded = torch.export.load(file).module()
    more = torch.cat([images, torch.rand_like(images)])
    decisions, exported = shield(more).argmax(1), loaded(more).argmax(1)
    equal = int((decisions == exported).sum())
    print(f"{equal} of {len(more)} decisions are equal; the shield rejects {int((decisions == 2).sum())} images")
