"""Stage 5, scenario 2: AutoAttack's images are shown to the shield."""

import pandas as pd

from multishield import records
from paper.stages.attacking import Attacking


class Stage(Attacking):
    """See `Attacking`; the item is the classifier."""

    def show(self) -> pd.DataFrame:
        """Decide on the images of scenario 1; write and return the records."""
        rows = records.records_of(self.item, "unaware", self.shield, self.data, self.unaware, self.ball)
        records.save(rows, self.folder / "records.csv")
        return rows
