"""Networks by source, loaded with their weights, or built without them.

The training stage stores the weights, so no later stage needs a download. timm and torchvision are slow to import.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from multishield.errors import UserError, reason_of
from multishield.files import load_tensors
from multishield.progress import quiet
from paper import paths
from paper.models import model_zoo, robustbench
from paper.models.cifar_resnet import build_network, load_exactly
from paper.models.model_zoo import check_name
from paper.params.sections import Classifiers, FineTuned, FromZoo, Timm, Torchvision
from paper.params.values import load_factory

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
    if source == "timm":
        return import_module("timm").create_model(model, num_classes=classes)
    options = INCEPTION if model in ("googlenet", "inception_v3") else {}
    return import_module("torchvision").models.get_model(model, num_classes=classes, **options)


def load(params: Classifiers, classes: int, key: str) -> tuple[nn.Module, list[float], list[float], int | None]:
    """The arguments of `Classifier`: a network for K classes, mean, std, and the side of its images (None: any).

    The weights are downloaded if they are not a file, and random to be trained. `key` is the network's key in
    params.yaml, such as "training.standard". Raises UserError if the name is unknown, or if the weights cannot be had,
    do not fit, or are for another number of classes.
    """
    if params.source == "model_zoo":
        return _load_from_zoo(params, classes, key)
    if params.source == "timm":
        return _load_timm(params, classes, key)
    if params.source in ("torchvision", "finetune"):
        return _load_torchvision(params, classes, key)
    network = build(params.model_dump(), classes)
    if params.source == "factory":
        if not isinstance(network, nn.Module):
            given = f"{key}.factory is {params.factory!r}, which returned {type(network).__name__}"
            raise UserError(f"{given}; it must return a torch module from pixels in [0,1] to logits")
        return network, *PLAIN, None
    if params.source == "checkpoint":
        file = paths.resolve(params.path)
        load_exactly(network, load_tensors(file), str(file))
    return network, params.mean, params.std, None


def check(params: Classifiers, key: str) -> None:
    """Check before the first stage what would fail after it. Nothing is built or downloaded; `key` is as for `load`.

    Raises UserError if a name is unknown, or a file, a function or the package robustbench is missing.
    """
    if params.source == "checkpoint":
        paths.existing(f"{key}.path", params.path)
    elif _is_file(getattr(params, "weights", None)):
        paths.existing(f"{key}.weights", params.weights)
    if params.source in ("torchvision", "finetune"):
        _published(params, key)
    elif params.source == "timm":
        check_timm(params.model, f"{key}.model")
    elif params.source == "factory":
        load_factory(f"{key}.factory", params.factory)
    elif params.source == "model_zoo":
        entry = model_zoo.find(f"{key}.name", params.name)
        if entry.source == "robustbench":
            robustbench.package(entry, "utils")


def _check_classes(given: str, outputs: int, classes: int) -> None:
    if outputs != classes:
        reason = f"tells {outputs} classes apart, but the data set has {classes}"
        raise UserError(f"{given}, which {reason}; choose another, or fine-tune one with `source: finetune`")


def _download(key: str, model: str, remedy: str, get: Callable):
    try:
        with quiet():
            return get()
    except (OSError, RuntimeError) as error:  # RuntimeErrors are errors that timm rewords, and wrong checksums
        given = f"{key}.model is {model!r}, but its weights could not be downloaded ({reason_of(error)})"
        file = f"without a network give the path of a safetensors file as {key}.weights"
        raise UserError(f"{given}; {file}, {remedy}") from None


def _load_from_zoo(params: FromZoo, classes: int, key: str) -> tuple:
    entry = model_zoo.find(f"{key}.name", params.name)
    _check_classes(f"{key}.name is {entry.name}", entry.classes, classes)
    if entry.source == "robustbench":
        network = robustbench.load(entry)
    else:
        network = build(params.model_dump(), classes)
        file = Path(import_module("pyautoattack.examples.resnet").__file__).with_name("model_test.pt")
        load_exactly(network, torch.load(file, map_location="cpu", weights_only=True), str(file))
    return network, *PLAIN, entry.preprocessing[0]


def check_timm(model: str, key: str) -> None:
    """Raises UserError if timm does not know a model, which a key of params.yaml names."""
    import timm

    names = {*timm.list_models(), *timm.list_models(pretrained=True)}
    check_name(key, model, names, "timm", "timm.list_models(pretrained=True) lists the names")


def _load_timm(params: Timm, classes: int, key: str) -> tuple:
    import timm

    model, given = params.model, f"{key}.model is {params.model!r}"
    check_timm(model, f"{key}.model")
    if params.weights:
        network = build(params.model_dump(), classes)
        load_exactly(network, load_tensors(paths.resolve(params.weights)), f"{key}.weights ({params.weights})")
    else:
        published = timm.get_pretrained_cfg(model)
        if not (published and published.has_weights):
            raise UserError(f"{given}, without weights in timm; give a file as {key}.weights")
        _check_classes(given, published.num_classes, classes)
        page = f"such as model.safetensors of https://huggingface.co/{published.hf_hub_id or 'timm'}"
        network = _download(key, model, page, lambda: timm.create_model(model, pretrained=True))
    setting = network.pretrained_cfg
    return network, list(setting["mean"]), list(setting["std"]), setting["input_size"][-1]


def _is_file(weights: str | None) -> bool:
    return (weights or "").endswith(".safetensors")


def _published(params: Torchvision | FineTuned, key: str):
    """The member of torchvision's weights that a tag names; for a file or none the model's best."""
    from torchvision import models

    model, weights, names = params.model, params.weights, models.list_models(module=models)
    check_name(f"{key}.model", model, names, "torchvision", "torchvision.models.list_models() lists the names")
    published = models.get_model_weights(model)
    if weights is None or _is_file(weights):
        return published.DEFAULT
    if weights not in published.__members__:
        tags = ", ".join(published.__members__)
        raise UserError(f"{key}.weights is {weights!r}; for {model} give a .safetensors file or one of {tags}")
    return published[weights]


def _load_torchvision(params: Torchvision | FineTuned, classes: int, key: str) -> tuple:
    """A network of torchvision. For fine-tuning its last layer is new; without weights, all layers are random."""
    model, weights, published = params.model, params.weights, _published(params, key)
    tuned, setting = params.source == "finetune", published.transforms()
    if not (tuned or _is_file(weights)):
        _check_classes(f"{key} is {model} {weights}", len(published.meta["categories"]), classes)
    network = build(params.model_dump(), classes)
    if weights is None:
        return network, setting.mean, setting.std, None
    new_head = _head(network, classes, f"{key}.model is {model!r}") if tuned else {}
    if _is_file(weights):
        state = load_tensors(paths.resolve(weights))
    else:
        remedy = f"or put {published.url} into {Path(torch.hub.get_dir()) / 'checkpoints'}"
        state = _download(key, model, remedy, lambda: published.get_state_dict(check_hash=True))
        state = {k: v for k, v in state.items() if not k.lower().startswith("aux")}
    load_exactly(network, state | new_head, f"{key}.weights ({weights})")
    return network, setting.mean, setting.std, setting.crop_size[0]


def _head(network: nn.Module, classes: int, given: str) -> dict[str, torch.Tensor]:
    """The weights of the last layer, which must be linear with K outputs."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not layers or network.get_submodule(layers[-1]).out_features != classes:
        raise UserError(f"{given}, whose head is no linear layer; use resnet18 or resnet50")
    return {name: tensor for name, tensor in network.state_dict().items() if name.rpartition(".")[0] == layers[-1]}
