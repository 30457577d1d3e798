"""Run by test_robustbench.py where robustbench is installed: every model of it through the zoo, with random weights."""

import argparse

import pytest
import torch

from multishield.errors import UserError
from multishield.forward import freeze, outputs
from paper import paths
from paper.models import pretrained, robustbench
from paper.models.classifier import Classifier, load_classifier, save_classifier
from paper.models.model_zoo import ENTRIES
from paper.params.sections import FromZoo

# The one whose weights are written where a download would put them, and read by robustbench's own loader.
SMALL = ENTRIES["Addepalli2022Efficient_RN18"]


def where_it_looks(entry):
    file = paths.datasets("robustbench", entry.dataset, entry.norm, f"{entry.name}.pt")
    file.parent.mkdir(parents=True)
    return file


def load(entry):
    described = FromZoo(source="model_zoo", name=entry.name)
    return freeze(Classifier(*pretrained.load(described, entry.classes, "training.net"))), described


def read_by_robustbench() -> None:
    """Weights of a file, through robustbench's loader; then from the training stage's files, without it."""
    network = robustbench.architecture(SMALL)
    file = where_it_looks(SMALL)
    torch.save(network.state_dict(), file)
    model, described = load(SMALL)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(outputs(model, x), outputs(Classifier(network.eval(), *pretrained.PLAIN, 32), x))
    save_classifier(model, described, SMALL.classes, paths.artifacts("training", "net"))
    torch.save({"state_dict": network.state_dict(), "options": argparse.Namespace()}, file)
    with pytest.raises(UserError, match="no state dict alone, and pickled objects may run any code"):
        load(SMALL)
    file.write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(UserError, match="could not be downloaded or read") as caught:
        load(SMALL)
    assert f"whose address is in robustbench/model_zoo, into {file.parent} or " in str(caught.value)
    assert torch.equal(outputs(load_classifier("net"), x), outputs(model, x))


def no_layer_stays_random() -> None:
    """Robustbench itself loads this file, and leaves the missing block as it was."""
    swin = ENTRIES["Liu2023Comprehensive_Swin-B"]
    weights = robustbench.architecture(swin).state_dict()
    computed = {k: v for k, v in weights.items() if k.rpartition(".")[2] not in {"mean", "std"}}
    assert len(computed) < len(weights), "its normalisation is among the weights"
    file = where_it_looks(swin)
    torch.save(computed, file)
    load(swin)
    torch.save({k: v for k, v in computed.items() if not k.startswith("model.layers.2.blocks.3.")}, file)
    with pytest.raises(UserError, match="the file does not fit the network: 13 keys differ"):
        load(swin)
    file.unlink()


def main() -> None:
    read_by_robustbench()
    no_layer_stays_random()
    loader = robustbench.package(SMALL, "utils")
    loader.load_model = lambda name, *rest: robustbench.architecture(ENTRIES[name]).eval()
    for entry in ENTRIES.values():
        if entry.source == "robustbench":
            torch.manual_seed(0)
            x = torch.rand(1, 3, *entry.preprocessing[:1] * 2, requires_grad=True)
            logits = load(entry)[0](x)
            assert logits.shape == (1, entry.classes), entry.name
            (gradient,) = torch.autograd.grad(logits.max(), x)
            assert gradient.isfinite().all(), entry.name
            assert gradient.any(), entry.name
            print(entry.name, flush=True)


if __name__ == "__main__":
    main()
