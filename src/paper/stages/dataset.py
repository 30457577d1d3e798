"""Stage 1: raw images to the splits for training, validation and evaluation."""

import pandas as pd

from multishield.images import Images
from paper.data.prepare import prepare
from paper.stages.base import Base


class Stage(Base):
    """See `Base`."""

    def prepare(self) -> dict[str, Images]:
        """Draw, read and write the splits, by their names."""
        return prepare(self.params.dataset, self.params.seed, self.folder)

    def counts(self, splits: dict[str, Images]) -> pd.DataFrame:
        """Number of images of each class in each split."""
        counts = {name: split.labels.bincount(minlength=len(self.classes)).tolist() for name, split in splits.items()}
        return pd.DataFrame(counts, index=pd.Index(self.classes, name="class")).T.assign(all=lambda f: f.sum(axis=1))
