"""Stage 6, scenario 3: the attacks aim at the shield itself."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from multishield import Evaluation, evaluate
from multishield.files import load_tensors
from paper import paths
from paper.stages.attacking import Attacking


def read(files: Iterable[Path]) -> dict:
    """Attacked images (N,C,H,W) from elsewhere, the tensor "images" of each file, by the name of the file."""
    return {file.stem: load_tensors(file).get("images") for file in sorted(files)}


class Stage(Attacking):
    """See `Attacking`; the item is the classifier."""

    def evaluate(self) -> Evaluation:
        """One call of `multishield.evaluate`; results and attacked images are in the stage's folder."""
        shutil.rmtree(self.folder, ignore_errors=True)  # it may be of a killed run with other parameters
        options = {"norm": self.ball.norm, "seed": self.params.seed, "budget": self.params.adaptive, "name": self.item}
        # Images that broke the classifier alone; those from elsewhere; the stage's folder, and who computes.
        options |= {"known": [self.unaware], "candidates": read(paths.candidates(self.item).glob("*.safetensors"))}
        options |= {"save_to": self.folder, "resume": self.resume, "each": self.each, "ids": self.data.ids}
        return evaluate(self.shield, self.data.images, self.data.labels, self.ball.eps, **options)
