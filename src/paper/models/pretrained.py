"""Networks by source, loaded with their weights, or built without them.

The training stage stores the weights, so no later stage needs a download. torchvision is slow to import.
"""

from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from multishield.errors import UserError, reason_of
from multishield.files import load_tensors
from multishield.progress import quiet
from paper import paths
from paper.models import model_zoo, robustbench
from paper.models.cifar_resnet import build_network, load_exactly, unwrapped
from paper.models.model_zoo import ENTRIES, check_name
from paper.params.sections import Classifiers, FineTuned, Torchvision
from paper.params.values import load_factory

FILE = ".safetensors"  # weights with this ending are a file, others a tag
PLAIN = ([0.0] * 3, [1.0] * 3)  # mean and std for networks that take pixels as they are, or normalise inside
# Published weights of the Inceptions have auxiliary heads, for training only, and expect another normalisation.
INCEPTION = {"aux_logits": False, "transform_input": True, "init_weights": False}


def build(made_by: dict, classes: int) -> nn.Module:
    """A network for K classes without its weights; `made_by` holds the source and the name from params.yaml.

    Raises UserError if a name is unknown or a package is missing.
    """
    source, model = made_by["source"], made_by.get("model")
    if source in ("train", "checkpoint"):
        return build_network(made_by["architecture"], classes)
    if source == "model_zoo":
        entry = model_zoo.find("the classifier", made_by["name"])
        if entry.source == "robustbench":
            return robustbench.architecture(entry)
        return import_module("pyautoattack.examples.resnet").ResNet18()
    if source == "factory":
        return load_factory("the classifier's factory", made_by["factory"])(classes)
    options = INCEPTION if model in ("googlenet", "inception_v3") else {}
    return import_module("torchvision").models.get_model(model, num_classes=classes, **options)


def check(params: Classifiers, key: str) -> None:
    """Check before the first stage what would fail after it. Nothing is built or downloaded; `key` is as for `load`.

    Raises UserError if a name is unknown, or a file, a function or the package robustbench is missing.
    """
    if params.source == "checkpoint":
        paths.existing(f"{key}.path", params.path)
    elif str(weights := getattr(params, "weights", None)).endswith(FILE):
        paths.existing(f"{key}.weights", weights)
    if params.source in ("torchvision", "finetune"):
        from torchvision import models

        names, listing = models.list_models(module=models), "torchvision.models.list_models() lists the names"
        check_name(f"{key}.model", params.model, names, "torchvision", listing)
        tags = models.get_model_weights(params.model).__members__
        if not (weights is None or weights.endswith(FILE) or weights in tags):
            accepted = f"a .safetensors file or one of {', '.join(tags)}"
            raise UserError(f"{key}.weights is {weights!r}; for {params.model} give {accepted}")
    elif params.source == "factory":
        load_factory(f"{key}.factory", params.factory)
    elif params.source == "model_zoo":
        entry = model_zoo.find(f"{key}.name", params.name)
        if entry.source == "robustbench":
            robustbench.package(entry, "utils")


def load(params: Classifiers, classes: int, key: str) -> tuple[nn.Module, list[float], list[float], int | None]:
    """The arguments of `Classifier`: a network for K classes, mean, std, and the side of its images (None: any).

    Weights come from a file or a download, and are random to be trained. `key` is that of params.yaml, such as
    "training.standard". Raises UserError as `check` does, or if the weights cannot be had or do not fit.
    """
    check(params, key)
    if params.source in ("torchvision", "finetune"):
        return _load_torchvision(params, classes, key)
    entry = ENTRIES[params.name] if params.source == "model_zoo" else None
    if entry and entry.source == "robustbench":
        return robustbench.load(entry), *PLAIN, entry.preprocessing[0]
    network = build(params.model_dump(), classes)
    if entry:
        file = Path(import_module("pyautoattack.examples.resnet").__file__).with_name("model_test.pt")
        load_exactly(network, torch.load(file, map_location="cpu", weights_only=True), str(file))
        return network, *PLAIN, entry.preprocessing[0]
    if params.source == "factory":
        if not isinstance(network, nn.Module):
            given = f"{key}.factory is {params.factory!r}, which returned {type(network).__name__}"
            raise UserError(f"{given}; it must return a torch module from pixels in [0,1] to logits")
        return network, *PLAIN, None
    if params.source == "checkpoint":
        load_exactly(network, load_tensors(paths.resolve(params.path)), params.path)
    return network, params.mean, params.std, None


def _load_torchvision(params: Torchvision | FineTuned, classes: int, key: str) -> tuple:
    """A network of torchvision. For fine-tuning its last layer is new; without weights, all layers are random."""
    tags, weights = import_module("torchvision").models.get_model_weights(params.model), params.weights
    published = tags.__members__.get(weights, tags.DEFAULT)  # for a file, or without weights: the model's best
    network, setting = build(params.model_dump(), classes), published.transforms()
    if weights is None:
        return network, setting.mean, setting.std, None
    new_head = _head(network, classes, f"{key}.model is {params.model!r}") if params.source == "finetune" else {}
    if weights.endswith(FILE):
        state = unwrapped(load_tensors(paths.resolve(weights)))
    else:
        try:
            with quiet():
                state = published.get_state_dict(check_hash=True)
        except (OSError, RuntimeError) as error:  # a RuntimeError says that the checksum is wrong
            given = f"the weights of {key}.model could not be downloaded ({reason_of(error)}); without a network give"
            raise UserError(f"{given} the path of a safetensors file as {key}.weights") from None
    state = {name: weight for name, weight in state.items() if not name.lower().startswith("aux")}
    load_exactly(network, state | new_head, f"{key}.weights ({weights})")
    return network, setting.mean, setting.std, setting.crop_size[0]


def _head(network: nn.Module, classes: int, given: str) -> dict[str, torch.Tensor]:
    """The weights of the last layer, which must be linear with K outputs."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not layers or network.get_submodule(layers[-1]).out_features != classes:
        raise UserError(f"{given}, whose head is no linear layer; use resnet18 or resnet50")
    return {name: tensor for name, tensor in network.state_dict().items() if name.rpartition(".")[0] == layers[-1]}
