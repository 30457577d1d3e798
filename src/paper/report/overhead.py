"""What a shield costs, in counts that are the same on every machine: parameters, and operations per image."""

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from multishield.forward import device_of
from paper.data.splits import load_split
from paper.params import Params
from paper.stages.baseline import load_shield


def overhead(classifiers: dict[str, nn.Module], alignment: nn.Module, image: Tensor) -> pd.DataFrame:
    """Each classifier alone, CLIP's image tower, and how much more the two cost together.

    Args:
        classifiers: by name. alignment: CLIP's class scores; its text side is computed once per run and not counted.
        image: one of the data set's, (1,3,H,W) in [0,1].

    Returns:
        model, "million parameters", "million operations per image" (a multiply-add counts as two, as torch counts
        matrix products and convolutions), and for the shields "times the classifier's".
    """
    clip = counted(alignment, image)
    rows = [{"model": "CLIP's image tower", "parts": clip}]
    for name, model in classifiers.items():
        alone = counted(model, image)
        rows += [{"model": name, "parts": alone}, {"model": f"{name} with the shield", "parts": alone + clip}]
        rows[-1]["times"] = (alone + clip)[1] / alone[1]
    return pd.DataFrame(
        {
            "model": row["model"],
            "million parameters": f"{row['parts'][0] / 1e6:.2f}",
            "million operations per image": f"{row['parts'][1] / 1e6:.1f}",
            "times the classifier's": f"{row['times']:.1f}" if "times" in row else "",
        }
        for row in rows
    )


def of_experiment(params: Params) -> pd.DataFrame:
    """`overhead` of the classifiers of params.yaml, on one of the evaluation images."""
    shields = {name: load_shield(name, params.multishield.tolerance) for name in params.classifiers}
    alignment = next(iter(shields.values())).alignment
    classifiers = {name: shield.classifier for name, shield in shields.items()}
    return overhead(classifiers, alignment, load_split("evaluation")[:1].pixels)


@torch.no_grad()
def counted(model: nn.Module, image: Tensor) -> Tensor:
    """Parameters and operations of one forward pass, int64 (2,)."""
    with FlopCounterMode(display=False) as counter:
        model(image.to(device_of(model)))
    return torch.tensor([sum(p.numel() for p in model.parameters()), counter.get_total_flops()])
