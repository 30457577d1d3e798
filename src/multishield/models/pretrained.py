"""Networks by source: as the pipeline trains them, from a checkpoint, the model zoo, torchvision, timm or a factory.

Each is built with its published weights (`load`), and without them (`architecture`): after the training stage the
weights are a file of ours, and no later stage needs a network. Packages that are slow to import are imported where they
are used.
"""

import importlib
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import nn

from multishield.models import model_zoo
from multishield.models.cifar_resnet import build_network, load_exactly
from multishield.models.fitted import PLAIN, Fitted, same_classes
from multishield.params import Catalogued, ClassifierFactory, FineTuned, Timm, Torchvision
from multishield.params.choices import ByParameter, load_factory
from multishield.storage import paths
from multishield.storage.errors import UserError

# A section of params.yaml, or what `describe` makes of one.
Described = BaseModel | dict


def describe(params: Described) -> dict:
    """What `architecture` needs to know: the source, and the name there."""
    values = params if isinstance(params, dict) else params.model_dump()
    return {key: values[key] for key in ("source", "architecture", "name", "model", "factory") if key in values}


def architecture(description: dict, classes: int) -> nn.Module:
    """A network without its weights, from what `describe` returned.

    Raises:
        UserError: the source does not know the name, or a package is missing.
    """
    return BUILDERS[description["source"]](description, classes)


def load(params: Catalogued | Torchvision | Timm | ClassifierFactory, classes: int, key: str) -> Fitted:
    """A network with its weights; they are downloaded where they are not a file.

    Args:
        classes: K, which must be the number of its outputs.
        key: the key of params.yaml that describes it, such as "training.standard".

    Raises:
        UserError: the name is unknown, the weights cannot be had or do not fit, or the outputs are not K.
    """
    return LOADERS[params.source](params, classes, key)


def check(params: BaseModel, key: str) -> None:
    """Say before the first stage what would fail after it. Nothing is built or downloaded.

    Args:
        key: the section's key in params.yaml, for the message.

    Raises:
        UserError: the source does not know the name; a file, a function or the package robustbench is missing.
    """
    if params.source == "checkpoint":
        paths.existing(f"{key}.path", params.path)
    elif (weights := getattr(params, "weights", None)) and weights.endswith(".safetensors"):
        paths.existing(f"{key}.weights", weights)
    if params.source in ("torchvision", "finetune"):
        from multishield.models import torchvision_models

        torchvision_models.chosen_weights(params.model, params.weights or "DEFAULT", key)
    elif params.source == "timm":
        from multishield.models import timm_models

        timm_models.check(params.model, f"{key}.model")
    elif params.source == "factory":
        load_factory(f"{key}.factory", params.factory)
    elif params.source == "catalogue":
        entry = model_zoo.find(f"{key}.name", params.name)
        if entry.source == "robustbench":
            from multishield.models import robustbench

            robustbench.check_installed(entry)


def new_head(params: FineTuned, classes: int, key: str) -> Fitted:
    """A torchvision model with a new last layer for K classes, to be fine-tuned. Raises: see `torchvision_models`."""
    from multishield.models import torchvision_models

    return torchvision_models.new_head(params, classes, key)


def _catalogue_network(entry: model_zoo.Entry) -> nn.Module:
    if entry.source == "robustbench":
        from multishield.models import robustbench

        return robustbench.architecture(entry)
    return importlib.import_module("pyautoattack.examples.resnet").ResNet18()


def _catalogued(params: Catalogued, classes: int, key: str) -> Fitted:
    entry = model_zoo.find(f"{key}.name", params.name)
    same_classes(f"{key}.name", entry.name, entry.classes, classes)
    if entry.source == "robustbench":
        from multishield.models import robustbench

        network = robustbench.load(entry)
    else:
        network = _catalogue_network(entry)
        import pyautoattack

        file = Path(pyautoattack.__file__).parent / "examples" / "model_test.pt"
        load_exactly(network, torch.load(file, map_location="cpu", weights_only=True), str(file))
    return Fitted(network, *PLAIN, entry.size)  # normalisation, where there is one, is inside these networks


def _factory(params: ClassifierFactory, classes: int, key: str) -> Fitted:
    network = load_factory(f"{key}.factory", params.factory)(classes)
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{key}.factory is {params.factory!r}, which returned {type(network).__name__}; it must return a torch "
            "module from pixels in [0,1] to logits"
        )
    return Fitted(network, *PLAIN, None)


def _own(description: dict, classes: int) -> nn.Module:
    return build_network(description["architecture"], classes)


def _of_zoo(description: dict, classes: int) -> nn.Module:
    return _catalogue_network(model_zoo.find("the classifier", description["name"]))


def _of_factory(description: dict, classes: int) -> nn.Module:
    return load_factory("the classifier's factory", description["factory"])(classes)


def _of_timm(description: dict, classes: int) -> nn.Module:
    import timm

    return timm.create_model(description["model"], num_classes=classes)


def _of_torchvision(description: dict, classes: int) -> nn.Module:
    from multishield.models import torchvision_models

    return torchvision_models.build(description["model"], classes)


def _load_torchvision(params: Torchvision, classes: int, key: str) -> Fitted:
    from multishield.models import torchvision_models

    return torchvision_models.load(params, classes, key)


def _load_timm(params: Timm, classes: int, key: str) -> Fitted:
    from multishield.models import timm_models

    return timm_models.load(params, classes, key)


BUILDERS = ByParameter(
    {
        "train": _own,
        "checkpoint": _own,
        "catalogue": _of_zoo,
        "factory": _of_factory,
        "timm": _of_timm,
        "torchvision": _of_torchvision,
        "finetune": _of_torchvision,
    }
)
LOADERS = ByParameter(
    {"catalogue": _catalogued, "torchvision": _load_torchvision, "timm": _load_timm, "factory": _factory}
)
