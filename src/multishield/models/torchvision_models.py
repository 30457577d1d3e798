"""Classifiers of torchvision: with published weights, or with a new head for fine-tuning."""

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from multishield.models.cifar_resnet import load_exactly
from multishield.models.fitted import Fitted, is_weights_file, reason_of, same_classes
from multishield.params import FineTuned, Torchvision
from multishield.storage import paths
from multishield.storage.errors import UserError, closest
from multishield.storage.progress import aside
from multishield.storage.tensors import load_tensors

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# Published weights of the Inceptions have auxiliary heads, for training only, and expect another normalisation, which
# torchvision then switches on by itself.
_INCEPTION = {"aux_logits": False, "transform_input": True, "init_weights": False}
_ARGUMENTS = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}


def _names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def build(model: str, classes: int) -> nn.Module:
    return torchvision.models.get_model(model, num_classes=classes, **_ARGUMENTS.get(model, {}))


def chosen_weights(model: str, weights: str, key: str):
    """The member of torchvision's weights that a tag names; for a file the model's best ones, whose setting it shares.

    Raises:
        UserError: torchvision does not know the model or the tag.
    """
    if model not in _names():
        ending = closest(model, _names(), "torchvision.models.list_models() lists the names")
        raise UserError(f"{key}.model is {model!r}, which torchvision does not know; {ending}")
    known = torchvision.models.get_model_weights(model)
    if is_weights_file(weights):
        return known.DEFAULT
    if weights not in known.__members__:
        raise UserError(
            f"{key}.weights is {weights!r}, but for {model} it must be the path of a safetensors file or one of "
            f"{', '.join(known.__members__)}"
        )
    return known[weights]


def _state(chosen, model: str, weights: str, key: str) -> dict[str, Tensor]:
    """The state dict of a file or of torchvision's host, without auxiliary heads."""
    if is_weights_file(weights):
        return load_tensors(paths.resolve(weights))
    try:
        with aside():
            state = chosen.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # network errors are OSErrors; a wrong checksum is a RuntimeError
        raise UserError(
            f"{key}.weights is {weights!r}, but the weights of {model} could not be downloaded from {chosen.url} "
            f"({reason_of(error)}); without a network, put that file into {Path(torch.hub.get_dir()) / 'checkpoints'}, "
            f"or give the path of a safetensors file as {key}.weights"
        ) from None
    return {k: v for k, v in state.items() if not k.lower().startswith("aux")}


def load(params: Torchvision, classes: int, key: str) -> Fitted:
    chosen = chosen_weights(params.model, params.weights, key)
    if not is_weights_file(params.weights):
        what = f"{params.model} with the weights {params.weights}"
        same_classes(key, what, len(chosen.meta["categories"]), classes)
    network = build(params.model, classes)
    state = _state(chosen, params.model, params.weights, key)
    load_exactly(network, state, f"{key}.weights ({params.weights})")
    setting = chosen.transforms()
    return Fitted(network, setting.mean, setting.std, setting.crop_size[0])


def new_head(params: FineTuned, classes: int, key: str) -> Fitted:
    """A torchvision model with published weights everywhere but in its last layer, which is made anew for K classes.

    Without weights all layers are random, and images keep their size.

    Raises:
        UserError: the model is unknown or has no linear head, the weights cannot be had or do not fit.
    """
    chosen = chosen_weights(params.model, params.weights or "DEFAULT", key)
    network = build(params.model, classes)
    if params.weights is None:
        return Fitted(network, *IMAGENET, None)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear or network.get_submodule(linear[-1]).out_features != classes:
        raise UserError(f"{key}.model is {params.model!r}, whose head is no linear layer; use resnet18 or resnet50")
    head = {f"{linear[-1]}.{part}" for part in ("weight", "bias")}
    state = _state(chosen, params.model, params.weights, key)
    fresh = {name: tensor for name, tensor in network.state_dict().items() if name in head}
    load_exactly(network, state | fresh, f"{key}.weights ({params.weights})")
    setting = chosen.transforms()
    return Fitted(network, setting.mean, setting.std, setting.crop_size[0])
