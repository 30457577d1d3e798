"""Stage 1: raw images to the splits for training, validation and evaluation."""

from multishield.images import Images
from paper.data.prepare import prepare
from paper.stages.base import Base


class Stage(Base):
    """See `Base`."""

    def prepare(self) -> dict[str, Images]:
        """Draw, read and write the splits, by their names."""
        return prepare(self.params.dataset, self.params.seed, self.folder)
