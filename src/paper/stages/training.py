"""Stage 2: a classifier is trained or loaded."""

import pandas as pd

from multishield.forward import accuracy
from paper.models.classifier import Classifier, check_stored, load_classifier, save_classifier
from paper.stages.base import Base
from paper.training.classifier import train_or_load


class Stage(Base):
    """See `Base`; the item is the classifier."""

    def train_or_load(self) -> tuple[Classifier, pd.DataFrame]:
        """The classifier, and a row per epoch."""
        described, data = self.params.training[self.item], (self.train, self.validation)
        return train_or_load(self.item, described, *data, len(self.classes), self.params.seed, self.resume)

    def save(self, classifier: Classifier, history: pd.DataFrame) -> str:
        """Write weights and history; returns a sentence about the accuracy."""
        save_classifier(classifier, self.params.training[self.item], len(self.classes), self.folder)
        check_stored(classifier, load_classifier(self.item), self.data[:16].pixels, f"training.{self.item}")
        history.to_csv(self.folder / "history.csv", index=False)
        share = 100 * accuracy(classifier, self.data)
        return f"{share:.1f} % of the {len(self.data)} evaluation images are classified correctly."
