"""What the stages' notebooks import to show their results. From here on all figures are in one style."""

import pandas as pd
import torch
from IPython.display import HTML, Markdown, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from multishield import joint, paper_attack, records
from multishield.zero_shot import align, embed_prompts, prompt_similarity
from paper.report import figures, sentences, tables
from paper.stages import comparison, studies

__all__ = ["align", "comparison", "embed_prompts", "joint", "paper_attack", "pd", "prompt_similarity", "sentences"]
__all__ += ["studies", "tables", "torch"]
figures.style()


def show(*results: str | pd.DataFrame) -> None:
    """Show sentences, in Markdown, and tables."""
    for result in results:
        display(Markdown(result) if isinstance(result, str) else HTML(records.to_html(result)))


def figure(drawn: Figure, caption: str) -> None:
    """Show a figure; the notebook's page prints the caption below it."""
    about = {"alt": caption} | getattr(drawn, "about", {}) | {"caption": caption}
    display(drawn, metadata={"image/png": about})
    plt.close(drawn)
