"""What the stages' notebooks import to show their results; figures are in one style from this import on."""

import html

import pandas as pd
import torch
from IPython.display import HTML, Markdown, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor, nn

from multishield.attacks.joint import joint
from multishield.attacks.paper import paper_attack
from multishield.forward import outputs
from multishield.images import Images
from multishield.records import TITLES, broken, to_html
from multishield.shield import MultiShield
from paper.report import figures
from paper.stages.attacking import Attacking

figures.style()


def show(*results: str | pd.DataFrame) -> None:
    """Show sentences (in Markdown) and tables."""
    for result in results:
        display(Markdown(result) if isinstance(result, str) else HTML(to_html(result)))


def figure(drawn: Figure, caption: str) -> None:
    """Show a figure. Its caption is its alternative text, too."""
    display(drawn, metadata={"image/png": {"alt": html.escape(caption)}})
    plt.close(drawn)
    show(f"*{caption}*")


def by_class(model: nn.Module, data: Images, classes: list[str]) -> pd.DataFrame:
    """A model's accuracy in per cent on the N images of each class; the worst class first."""
    right = pd.DataFrame({"accuracy": 100 * (outputs(model, data.pixels).argmax(1) == data.labels).double()})
    table = right.groupby([classes[k] for k in data.labels]).accuracy.agg(["mean", "size"]).round(1)
    return table.set_axis(["accuracy", "N"], axis=1).rename_axis("class").sort_values("accuracy").reset_index()


class _Recorded(MultiShield):
    """A shield that keeps in `passes` the margins (2,K) of the first image of each pass."""

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = super().scores(x)
        self.passes.append(self.margins(scores)[0].detach().cpu())
        return scores


def trajectories(s: Attacking, rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """One image under the paper's attack and under joint, pass by pass, and a sentence about both.

    The records of scenario 3 choose an image that joint alone breaks, if there is one. Here joint tries one class from
    a random point. Returns a column per attack and model, and a row per pass: the model's margin for the wrong class
    that comes closest to acceptance, divided by the true class's margin on the clean image. The shield accepts the
    wrong class where both are >= 0.
    """
    paper, ours = (rows[rows.scenario == name].reset_index(drop=True) for name in ("paper", "joint"))
    i = int((2 * (ours.clean_decision == ours.label) + broken(ours) - 1 * broken(paper)).idxmax())
    one, tables, words = s.data[i : i + 1], {}, []
    options = {"ball": s.ball, "seed": s.params.seed, "ids": one.ids}
    for name, attack, more in (("paper", paper_attack, {}), ("joint", joint, {"targets": 1, "long": 1, "rounds": 0})):
        shield = _Recorded(s.shield.classifier, s.shield.alignment, s.shield.tolerance)
        shield.passes = []
        attack(shield, one.pixels, one.labels, steps=100, **options, **more)
        margins = torch.stack(shield.passes)
        margins = (margins / margins[0, :, one.labels].clamp_min(1e-6)).index_fill(2, one.labels, -torch.inf)
        closest = margins[:, :, margins.amin(1).amax(0).argmax()]
        tables[TITLES[name]] = pd.DataFrame(closest.numpy(), columns=["classifier", "CLIP"])
        result = "has moved both models to one wrong class" if (closest[-1] >= 0).all() else "has failed"
        words.append(f"{TITLES[name]} {result} after {len(closest) - 1} passes")
    text = f"On image {int(one.ids)} ({s.classes[int(one.labels)]}) {words[0]}; {words[1]}."
    return pd.concat(tables, axis=1), text
