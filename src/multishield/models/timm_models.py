"""Classifiers of timm, with its own weights or those of a file."""

import timm
from torch import nn

from multishield.models.cifar_resnet import load_exactly
from multishield.models.fitted import Fitted, reason_of, same_classes
from multishield.params import Timm
from multishield.storage import paths
from multishield.storage.errors import UserError, closest
from multishield.storage.progress import aside
from multishield.storage.tensors import load_tensors


def check(model: str, key: str) -> None:
    """See that timm knows a model, which a key of params.yaml names.

    Raises:
        UserError: it does not.
    """
    known = {*timm.list_models(), *timm.list_models(pretrained=True)}
    if model not in known:
        ending = closest(model, known, "timm.list_models(pretrained=True) lists the names")
        raise UserError(f"{key} is {model!r}, which timm does not know; {ending}")


def load(params: Timm, classes: int, key: str) -> Fitted:
    check(params.model, f"{key}.model")
    if params.weights:
        network = timm.create_model(params.model, num_classes=classes)
        load_exactly(network, load_tensors(paths.resolve(params.weights)), f"{key}.weights ({params.weights})")
    else:
        network = _download(params.model, classes, key)
    setting = network.pretrained_cfg
    return Fitted(network, list(setting["mean"]), list(setting["std"]), setting["input_size"][-1])


def _download(model: str, classes: int, key: str) -> nn.Module:
    setting = timm.get_pretrained_cfg(model)
    if not (setting and setting.has_weights):
        raise UserError(f"{key}.model is {model!r}, for which timm has no weights; give a file as {key}.weights")
    same_classes(f"{key}.model", model, setting.num_classes, classes)
    try:
        with aside():
            return timm.create_model(model, pretrained=True)
    except (OSError, RuntimeError) as error:  # huggingface_hub's errors are OSErrors, or RuntimeErrors of timm
        raise UserError(
            f"{key}.model is {model!r}, but its weights could not be downloaded ({reason_of(error)}); without a "
            f"network give the path of a safetensors file as {key}.weights, such as model.safetensors of "
            f"https://huggingface.co/{setting.hf_hub_id or 'timm'}"
        ) from None
