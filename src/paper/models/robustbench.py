"""RobustBench's models through its own package, which is an extra: the rest of the pipeline does without it."""

import importlib
import pickle
import sys
import warnings
from types import ModuleType

import torch
from torch import nn

from multishield.errors import UserError, reason_of
from multishield.progress import quiet
from paper import paths
from paper.models.model_zoo import Entry

# A file may lack normalisation, which the architecture sets, and tensors that timm's Swin computes by itself.
COMPUTED = {"mean", "std", "mu", "sigma", "attn_mask", "relative_position_index", "num_batches_tracked"}


def package(entry: Entry, module: str) -> ModuleType:
    """A module of robustbench. Raises UserError if the package, or one that it needs, is not installed."""
    # robustbench imports `autoattack`, which PyPI does not have; its authors publish the same as `pyautoattack`.
    for name in ("", ".state"):
        sys.modules.setdefault(f"autoattack{name}", importlib.import_module(f"pyautoattack{name}"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses old names of modules of timm and setuptools
            return importlib.import_module(f"robustbench.{module}")
    except ImportError as error:
        given = f"{entry.name} is a model of the package robustbench, which cannot be imported ({error})"
        command = "pip install --no-deps --requirement requirements-robustbench.lock"
        raise UserError(f"{given}; it is an extra: run `{command}`") from None


def architecture(entry: Entry) -> nn.Module:
    """The network of an entry with random weights, without a download. Raises UserError as `package` does."""
    import timm

    models, enums = package(entry, "model_zoo").model_dicts, package(entry, "model_zoo.enums")
    name = f"{entry.name}_{entry.dataset}_{entry.norm}".lower().replace("-", "_")
    if timm.is_model(name):  # robustbench registers some there
        return timm.create_model(name, num_classes=entry.classes)
    return models[enums.BenchmarkDataset(entry.dataset)][enums.ThreatModel(entry.norm)][entry.name]["model"]()


def load(entry: Entry) -> nn.Module:
    """The network of an entry with its published weights. Raises UserError if they cannot be had or do not fit."""
    utils = package(entry, "utils")
    utils._safe_load_state_dict = _load_every_weight
    # gdown, or else the unpickling, notices a host that sends a page instead of the file.
    failures = (OSError, RuntimeError, pickle.UnpicklingError, utils.gdown.exceptions.FileURLRetrievalError)
    try:
        with quiet():
            return utils.load_model(entry.name, paths.datasets("robustbench"), entry.dataset, entry.norm)
    except failures as error:
        unsafe = "the file is no state dict alone, and pickled objects may run any code"
        reason = unsafe if isinstance(error, pickle.UnpicklingError) else reason_of(error)
        given = f"the weights of {entry.name} could not be downloaded or read ({reason})"
        folders = f"{paths.datasets('robustbench', entry.dataset, entry.norm)} or {torch.hub.get_dir()}/checkpoints"
        raise UserError(f"{given}; put their file, whose address is in robustbench/model_zoo, into {folders}") from None


def _load_every_weight(model: nn.Module, name: str, weights: dict, dataset) -> nn.Module:
    """Refuse a file that lacks weights; robustbench's own function, in whose place this stands, leaves them random."""
    keys = model.load_state_dict(weights, strict=False)
    wrong = [k for k in keys.missing_keys + keys.unexpected_keys if k.rpartition(".")[2] not in COMPUTED]
    if wrong:
        raise RuntimeError(f"the file does not fit the network: {len(wrong)} keys differ, such as {wrong[0]}")
    return model
