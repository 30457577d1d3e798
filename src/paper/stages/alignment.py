"""Stage 3: a CLIP is trained or loaded, its prompts are embedded, and its image tower may be made robust."""

import pandas as pd
from torch import Tensor

from multishield.files import read_json
from multishield.forward import device
from multishield.zero_shot import Clip, align
from paper import paths
from paper.models.alignment import load_alignment, save_alignment
from paper.models.classifier import check_stored
from paper.stages.base import Base
from paper.training.clip import train_or_load, zero_shot
from paper.training.robust_tower import harden


class Stage(Base):
    """See `Base`."""

    def train_or_load(self) -> tuple[Clip, pd.DataFrame]:
        """The CLIP, and a row per epoch."""
        captions, prompts = read_json(paths.artifacts("dataset", "captions.json")), self.params.alignment.prompts
        if captions is None:  # the data set has none: class names in the prompts, which take turns
            captions = [prompts[i % len(prompts)].format(self.classes[k]) for i, k in enumerate(self.train.labels)]
        data = self.train, captions, self.validation, self.classes
        return train_or_load(self.params.alignment, *data, self.params.seed, self.resume)

    def harden(self, clip: Clip, text: Tensor) -> pd.DataFrame:
        """Train the image tower adversarially, in place, if params.yaml says so; returns a row per epoch."""
        robust = self.params.alignment.robust
        return harden(clip, robust, self.train, self.validation, text, self.params.seed, self.resume)

    def save(self, clip: Clip, text: Tensor, history: pd.DataFrame, robust: pd.DataFrame) -> str:
        """Write the alignment and its histories; returns a sentence about the accuracy."""
        save_alignment(clip, self.params.alignment, text, self.folder)
        made = align(clip, text).eval().to(device())
        check_stored(made, load_alignment(), self.data[:16].pixels, "the CLIP of alignment")
        history.to_csv(self.folder / "history.csv", index=False)
        if len(robust):
            robust.to_csv(self.folder / "robust.csv", index=False)
        score = zero_shot(clip, self.data, text)
        return f"CLIP's zero-shot accuracy on the {len(self.data)} evaluation images is **{100 * score:.1f} %**."
