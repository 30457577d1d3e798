"""Networks by source: as the pipeline trains them, from a checkpoint, the catalogue, torchvision, timm or a factory.

Each is built with its published weights (`load`), and without them (`architecture`): after the training stage the
weights are a file of ours, and no later stage needs a network. timm and torchvision, which are slow to import, are
imported where they are used.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from multishield.errors import UserError, closest, reason_of
from multishield.progress import aside
from multishield.tensors import load_tensors
from paper import paths
from paper.models import model_zoo, robustbench
from paper.models.cifar_resnet import build_network, load_exactly
from paper.params import Catalogued, ClassifierFactory, FineTuned, Timm, Torchvision
from paper.params.choices import ByParameter, load_factory

# A section of params.yaml, or what `describe` makes of one.
Described = BaseModel | dict
# Networks that normalise inside take pixels as they are.
PLAIN = ([0.0] * 3, [1.0] * 3)
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# Published weights of the Inceptions have auxiliary heads, for training only, and expect another normalisation, which
# torchvision then switches on by itself.
_INCEPTION = {"aux_logits": False, "transform_input": True, "init_weights": False}
_ARGUMENTS = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}


@dataclass(frozen=True)
class Fitted:
    """A network, the normalisation it was trained with, and the side of the images it was made for (None: any)."""

    network: nn.Module
    mean: list[float]
    std: list[float]
    size: int | None


def describe(params: Described) -> dict:
    """What `architecture` needs to know: the source, and the name there."""
    values = params if isinstance(params, dict) else params.model_dump()
    return {key: values[key] for key in ("source", "architecture", "name", "model", "factory") if key in values}


def architecture(description: dict, classes: int) -> nn.Module:
    """A network of what `describe` returned, without weights. Raises UserError for unknown names, missing packages."""
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
    """Say before the first stage what would fail after it. Nothing is built or downloaded; `key` is as for `load`.

    Raises:
        UserError: the source does not know the name; a file, a function or the package robustbench is missing.
    """
    if params.source == "checkpoint":
        paths.existing(f"{key}.path", params.path)
    elif (weights := getattr(params, "weights", None)) and weights.endswith(".safetensors"):
        paths.existing(f"{key}.weights", weights)
    if params.source in ("torchvision", "finetune"):
        _published_weights(params, key)
    elif params.source == "timm":
        check_timm(params.model, f"{key}.model")
    elif params.source == "factory":
        load_factory(f"{key}.factory", params.factory)
    elif params.source == "catalogue":
        entry = model_zoo.find(f"{key}.name", params.name)
        if entry.source == "robustbench":
            robustbench.package(entry, "utils")


def _same_classes(key: str, what: str, outputs: int, classes: int) -> None:
    if outputs != classes:
        raise UserError(
            f"{key} is {what}, which tells {outputs} classes apart, but the data set has {classes}; choose a "
            "classifier of that data set, or `source: finetune`, which gives a torchvision model a new head"
        )


def _catalogue_network(entry: model_zoo.Entry) -> nn.Module:
    if entry.source == "robustbench":
        return robustbench.architecture(entry)
    return importlib.import_module("pyautoattack.examples.resnet").ResNet18()


def _load_catalogued(params: Catalogued, classes: int, key: str) -> Fitted:
    entry = model_zoo.find(f"{key}.name", params.name)
    _same_classes(f"{key}.name", entry.name, entry.classes, classes)
    if entry.source == "robustbench":
        network = robustbench.load(entry)
    else:
        network = _catalogue_network(entry)
        file = Path(importlib.import_module("pyautoattack").__file__).parent / "examples" / "model_test.pt"
        load_exactly(network, torch.load(file, map_location="cpu", weights_only=True), str(file))
    return Fitted(network, *PLAIN, entry.size)  # normalisation, where there is one, is inside these networks


def _load_factory(params: ClassifierFactory, classes: int, key: str) -> Fitted:
    network = load_factory(f"{key}.factory", params.factory)(classes)
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{key}.factory is {params.factory!r}, which returned {type(network).__name__}; it must return a torch "
            "module from pixels in [0,1] to logits"
        )
    return Fitted(network, *PLAIN, None)


def _build_timm(model: str, classes: int) -> nn.Module:
    import timm

    return timm.create_model(model, num_classes=classes)


def check_timm(model: str, key: str) -> None:
    """See that timm knows a model, which a key of params.yaml names. Raises UserError if it does not."""
    import timm

    known = {*timm.list_models(), *timm.list_models(pretrained=True)}
    if model not in known:
        ending = closest(model, known, "timm.list_models(pretrained=True) lists the names")
        raise UserError(f"{key} is {model!r}, which timm does not know; {ending}")


def _load_timm(params: Timm, classes: int, key: str) -> Fitted:
    """A network of timm with timm's own weights or those of a file."""
    check_timm(params.model, f"{key}.model")
    if params.weights:
        network = _build_timm(params.model, classes)
        load_exactly(network, load_tensors(paths.resolve(params.weights)), f"{key}.weights ({params.weights})")
    else:
        network = _download_timm(params.model, classes, key)
    setting = network.pretrained_cfg
    return Fitted(network, list(setting["mean"]), list(setting["std"]), setting["input_size"][-1])


def _download_timm(model: str, classes: int, key: str) -> nn.Module:
    import timm

    setting = timm.get_pretrained_cfg(model)
    if not (setting and setting.has_weights):
        raise UserError(f"{key}.model is {model!r}, for which timm has no weights; give a file as {key}.weights")
    _same_classes(f"{key}.model", model, setting.num_classes, classes)
    try:
        with aside():
            return timm.create_model(model, pretrained=True)
    except (OSError, RuntimeError) as error:  # huggingface_hub's errors are OSErrors, or RuntimeErrors of timm
        raise UserError(
            f"{key}.model is {model!r}, but its weights could not be downloaded ({reason_of(error)}); without a "
            f"network give the path of a safetensors file as {key}.weights, such as model.safetensors of "
            f"https://huggingface.co/{setting.hf_hub_id or 'timm'}"
        ) from None


def _build_torchvision(model: str, classes: int) -> nn.Module:
    from torchvision import models

    return models.get_model(model, num_classes=classes, **_ARGUMENTS.get(model, {}))


def _is_weights_file(weights: str) -> bool:
    return weights.endswith(".safetensors") or paths.resolve(weights).is_file()


def _published_weights(params: Torchvision | FineTuned, key: str):
    """The member of torchvision's weights that a tag names; for a file or none the model's best, for their setting.

    Raises UserError if torchvision does not know the model or the tag.
    """
    from torchvision import models

    model, weights, names = params.model, params.weights or "DEFAULT", models.list_models(module=models)
    if model not in names:
        ending = closest(model, names, "torchvision.models.list_models() lists the names")
        raise UserError(f"{key}.model is {model!r}, which torchvision does not know; {ending}")
    known = models.get_model_weights(model)
    if _is_weights_file(weights):
        return known.DEFAULT
    if weights not in known.__members__:
        raise UserError(
            f"{key}.weights is {weights!r}, but for {model} it must be the path of a safetensors file or one of "
            f"{', '.join(known.__members__)}"
        )
    return known[weights]


def _download_torchvision(params: Torchvision | FineTuned, chosen, key: str) -> dict[str, Tensor]:
    """The state dict on torchvision's host, without auxiliary heads."""
    try:
        with aside():
            state = chosen.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # network errors are OSErrors; a wrong checksum is a RuntimeError
        raise UserError(
            f"{key}.weights is {params.weights!r}, but the weights of {params.model} could not be downloaded from "
            f"{chosen.url} ({reason_of(error)}); without a network, put that file into "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'}, or give the path of a safetensors file as {key}.weights"
        ) from None
    return {k: v for k, v in state.items() if not k.lower().startswith("aux")}


def _fill(network: nn.Module, params: Torchvision | FineTuned, chosen, key: str, fresh: dict[str, Tensor]) -> Fitted:
    """Load a file or what `chosen` names, with the tensors `fresh` in place of its own."""
    if _is_weights_file(params.weights):
        state = load_tensors(paths.resolve(params.weights))
    else:
        state = _download_torchvision(params, chosen, key)
    load_exactly(network, state | fresh, f"{key}.weights ({params.weights})")
    setting = chosen.transforms()
    return Fitted(network, setting.mean, setting.std, setting.crop_size[0])


def _load_torchvision(params: Torchvision, classes: int, key: str) -> Fitted:
    chosen = _published_weights(params, key)
    if not _is_weights_file(params.weights):
        what = f"{params.model} with the weights {params.weights}"
        _same_classes(key, what, len(chosen.meta["categories"]), classes)
    return _fill(_build_torchvision(params.model, classes), params, chosen, key, {})


def new_head(params: FineTuned, classes: int, key: str) -> Fitted:
    """A torchvision model with published weights everywhere but in its last layer, which is made anew for K classes.

    Without weights all layers are random, and images keep their size.

    Raises:
        UserError: the model is unknown or has no linear head, the weights cannot be had or do not fit.
    """
    chosen = _published_weights(params, key)
    network = _build_torchvision(params.model, classes)
    if params.weights is None:
        return Fitted(network, *IMAGENET, None)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear or network.get_submodule(linear[-1]).out_features != classes:
        raise UserError(f"{key}.model is {params.model!r}, whose head is no linear layer; use resnet18 or resnet50")
    fresh = {name: tensor for name, tensor in network.state_dict().items() if name.rpartition(".")[0] == linear[-1]}
    return _fill(network, params, chosen, key, fresh)


# What `describe` returned, and K, to a network without its weights.
BUILDERS = ByParameter(
    {
        "train": lambda made, classes: build_network(made["architecture"], classes),
        "checkpoint": lambda made, classes: build_network(made["architecture"], classes),
        "catalogue": lambda made, _: _catalogue_network(model_zoo.find("the classifier", made["name"])),
        "factory": lambda made, classes: load_factory("the classifier's factory", made["factory"])(classes),
        "timm": lambda made, classes: _build_timm(made["model"], classes),
        "torchvision": lambda made, classes: _build_torchvision(made["model"], classes),
        "finetune": lambda made, classes: _build_torchvision(made["model"], classes),
    }
)
LOADERS = ByParameter(
    {"catalogue": _load_catalogued, "torchvision": _load_torchvision, "timm": _load_timm, "factory": _load_factory}
)
