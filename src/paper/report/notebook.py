"""What the notebooks of the stages import to show their results. From here on all figures are in one style."""

import pandas as pd
import torch
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from multishield import joint, paper_attack, records, zero_shot
from paper.report import figures, sentences, tables
from paper.stages import comparison, studies

__all__ = ["comparison", "joint", "paper_attack", "records", "sentences", "studies", "tables", "torch", "zero_shot"]
figures.style()


def show(*results: str | pd.DataFrame | Figure) -> None:
    """Show sentences, in Markdown, tables and figures."""
    for result in results:
        text = Markdown(result) if isinstance(result, str) else result
        display(HTML(records.to_html(result)) if isinstance(result, pd.DataFrame) else text)
