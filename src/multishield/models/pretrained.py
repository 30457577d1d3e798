"""Networks by source: as the pipeline trains them, from a checkpoint, the catalogue, torchvision, timm or an extension.

Each is built with its published weights (`load`), and without them (`architecture`): after the training stage the
weights are a file of ours, and no later stage needs a network.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

import pyautoattack
import timm
import torch
import torchvision
from pydantic import BaseModel
from torch import Tensor, nn

from multishield.models import model_zoo, robustbench
from multishield.models.cifar_resnet import build_network, load_exactly
from multishield.models.model_zoo import closest
from multishield.params import Catalogued, ClassifierFactory, FineTuned, Timm, Torchvision
from multishield.params.extensions import load_factory
from multishield.storage import paths
from multishield.storage.errors import UserError
from multishield.storage.files import load_tensors
from multishield.storage.progress import aside

# A section of params.yaml, or what `describe` makes of one.
Described = BaseModel | dict
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
    """A network without its weights, from what `describe` returned.

    Raises:
        UserError: the source does not know the name, or a package is missing.
    """
    source = description["source"]
    if source in ("train", "checkpoint"):
        return build_network(description["architecture"], classes)
    if source == "catalogue":
        return _catalogue_network(model_zoo.find("the classifier", description["name"]))
    if source == "factory":
        return load_factory("the classifier's factory", description["factory"])(classes)
    if source == "timm":
        return timm.create_model(description["model"], num_classes=classes)
    return _torchvision_network(description["model"], classes)


def load(params: Catalogued | Torchvision | Timm | ClassifierFactory, classes: int, key: str) -> Fitted:
    """A network with its weights; they are downloaded where they are not a file.

    Args:
        classes: K, which must be the number of its outputs.
        key: the key of params.yaml that describes it, such as "training.standard".

    Raises:
        UserError: the name is unknown, the weights cannot be had or do not fit, or the outputs are not K.
    """
    by_source = {"catalogue": _catalogued, "torchvision": _torchvision, "timm": _timm, "factory": _factory}
    return by_source[params.source](params, classes, key)


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
        _torchvision_weights(params.model, params.weights or "DEFAULT", key)
    elif params.source == "timm":
        _check_timm(params.model, key)
    elif params.source == "factory":
        load_factory(f"{key}.factory", params.factory)
    elif params.source == "catalogue":
        entry = model_zoo.find(f"{key}.name", params.name)
        if entry.source == "robustbench":
            robustbench.check_installed(entry)


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


def _catalogued(params: Catalogued, classes: int, key: str) -> Fitted:
    entry = model_zoo.find(f"{key}.name", params.name)
    _same_classes(f"{key}.name", entry.name, entry.classes, classes)
    if entry.source == "robustbench":
        network = robustbench.load(entry)
    else:
        network = _catalogue_network(entry)
        file = Path(pyautoattack.__file__).parent / "examples" / "model_test.pt"
        load_exactly(network, torch.load(file, map_location="cpu", weights_only=True), str(file))
    return Fitted(network, *PLAIN, entry.size)  # normalisation, where there is one, is inside these networks


def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def _torchvision_network(model: str, classes: int) -> nn.Module:
    return torchvision.models.get_model(model, num_classes=classes, **_ARGUMENTS.get(model, {}))


def _is_file(weights: str) -> bool:
    return weights.endswith(".safetensors") or paths.resolve(weights).is_file()


def _torchvision_weights(model: str, weights: str, key: str):
    """The member of torchvision's weights that a tag names; for a file the model's best ones, whose setting it shares.

    Raises:
        UserError: torchvision does not know the model or the tag.
    """
    if model not in _torchvision_names():
        ending = closest(model, _torchvision_names(), "torchvision.models.list_models() lists the names")
        raise UserError(f"{key}.model is {model!r}, which torchvision does not know; {ending}")
    known = torchvision.models.get_model_weights(model)
    if _is_file(weights):
        return known.DEFAULT
    if weights not in known.__members__:
        raise UserError(
            f"{key}.weights is {weights!r}, but for {model} it must be the path of a safetensors file or one of "
            f"{', '.join(known.__members__)}"
        )
    return known[weights]


def _torchvision_state(chosen, model: str, weights: str, key: str) -> dict[str, Tensor]:
    """The state dict of a file or of torchvision's host, without auxiliary heads."""
    if _is_file(weights):
        return load_tensors(paths.resolve(weights))
    try:
        with aside():
            state = chosen.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # network errors are OSErrors; a wrong checksum is a RuntimeError
        raise UserError(
            f"{key}.weights is {weights!r}, but the weights of {model} could not be downloaded from {chosen.url} "
            f"({_reason(error)}); without a network, put that file into {Path(torch.hub.get_dir()) / 'checkpoints'}, "
            f"or give the path of a safetensors file as {key}.weights"
        ) from None
    return {k: v for k, v in state.items() if not k.lower().startswith("aux")}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _torchvision(params: Torchvision, classes: int, key: str) -> Fitted:
    chosen = _torchvision_weights(params.model, params.weights, key)
    if not _is_file(params.weights):
        what = f"{params.model} with the weights {params.weights}"
        _same_classes(key, what, len(chosen.meta["categories"]), classes)
    network = _torchvision_network(params.model, classes)
    state = _torchvision_state(chosen, params.model, params.weights, key)
    load_exactly(network, state, f"{key}.weights ({params.weights})")
    setting = chosen.transforms()
    return Fitted(network, setting.mean, setting.std, setting.crop_size[0])


def new_head(params: FineTuned, classes: int, key: str) -> Fitted:
    """A torchvision model with published weights everywhere but in its last layer, which is made anew for K classes.

    Without weights all layers are random, and images keep their size.

    Raises:
        UserError: the model is unknown or has no linear head, the weights cannot be had or do not fit.
    """
    chosen = _torchvision_weights(params.model, params.weights or "DEFAULT", key)
    network = _torchvision_network(params.model, classes)
    if params.weights is None:
        return Fitted(network, *IMAGENET, None)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear or network.get_submodule(linear[-1]).out_features != classes:
        raise UserError(f"{key}.model is {params.model!r}, whose head is no linear layer; use resnet18 or resnet50")
    head = {f"{linear[-1]}.{part}" for part in ("weight", "bias")}
    state = _torchvision_state(chosen, params.model, params.weights, key)
    fresh = {name: tensor for name, tensor in network.state_dict().items() if name in head}
    load_exactly(network, state | fresh, f"{key}.weights ({params.weights})")
    setting = chosen.transforms()
    return Fitted(network, setting.mean, setting.std, setting.crop_size[0])


def _check_timm(model: str, key: str) -> None:
    known = {*timm.list_models(), *timm.list_models(pretrained=True)}
    if model not in known:
        ending = closest(model, known, "timm.list_models(pretrained=True) lists the names")
        raise UserError(f"{key}.model is {model!r}, which timm does not know; {ending}")


def _timm(params: Timm, classes: int, key: str) -> Fitted:
    _check_timm(params.model, key)
    if params.weights:
        network = timm.create_model(params.model, num_classes=classes)
        load_exactly(network, load_tensors(paths.resolve(params.weights)), f"{key}.weights ({params.weights})")
    else:
        network = _timm_download(params.model, classes, key)
    setting = network.pretrained_cfg
    return Fitted(network, list(setting["mean"]), list(setting["std"]), setting["input_size"][-1])


def _timm_download(model: str, classes: int, key: str) -> nn.Module:
    setting = timm.get_pretrained_cfg(model)
    if not (setting and setting.has_weights):
        raise UserError(f"{key}.model is {model!r}, for which timm has no weights; give a file as {key}.weights")
    _same_classes(f"{key}.model", model, setting.num_classes, classes)
    try:
        with aside():
            return timm.create_model(model, pretrained=True)
    except (OSError, RuntimeError) as error:  # huggingface_hub's errors are OSErrors, or RuntimeErrors of timm
        raise UserError(
            f"{key}.model is {model!r}, but its weights could not be downloaded ({_reason(error)}); without a network "
            f"give the path of a safetensors file as {key}.weights, such as model.safetensors of "
            f"https://huggingface.co/{setting.hf_hub_id or 'timm'}"
        ) from None


def _factory(params: ClassifierFactory, classes: int, key: str) -> Fitted:
    network = load_factory(f"{key}.factory", params.factory)(classes)
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{key}.factory is {params.factory!r}, which returned {type(network).__name__}; it must return a torch "
            "module from pixels in [0,1] to logits"
        )
    return Fitted(network, *PLAIN, None)
