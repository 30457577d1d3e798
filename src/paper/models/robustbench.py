"""RobustBench's models through its own package, which is an extra: the rest of the pipeline does without it."""

import importlib
import pickle
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from multishield.errors import UserError
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

    listed, registered = _listed(entry)
    return timm.create_model(registered, num_classes=entry.classes) if timm.is_model(registered) else listed["model"]()


def _listed(entry: Entry) -> tuple[dict, str]:
    """An entry of robustbench's own model zoo, and the name that timm knows it by if robustbench registers it there."""
    models, enums = package(entry, "model_zoo").model_dicts, package(entry, "model_zoo.enums")
    listed = models[enums.BenchmarkDataset(entry.dataset)][enums.ThreatModel(entry.norm)][entry.name]
    return listed, f"{entry.name}_{entry.dataset}_{entry.norm}".lower().replace("-", "_")


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
        text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
        reason, remedy = text[:200] or type(error).__name__, "remove the file of a broken attempt, or put there "
        if pickled := re.search(r"Unsupported \w+: (?:GLOBAL )?([\w.]+)", text):
            reason = f"they hold an object of {pickled[1]}, which may run any code and is not read"
            remedy = "put a file of the state dict alone in place of "
        given = f"the weights of {entry.name} could not be downloaded or read"
        raise UserError(f"{given} ({reason}); {remedy}{_expected(entry)}") from None


def _load_every_weight(model: nn.Module, name: str, weights: dict, dataset) -> nn.Module:
    """Refuse a file that lacks weights; robustbench's own function, in whose place this stands, leaves them random."""
    keys = model.load_state_dict(weights, strict=False)
    wrong = [k for k in keys.missing_keys + keys.unexpected_keys if k.rpartition(".")[2] not in COMPUTED]
    if wrong:
        raise RuntimeError(f"the file does not fit the network: {len(wrong)} keys differ, such as {wrong[0]}")
    return model


def _expected(entry: Entry) -> str:
    """The files of weights that robustbench looks for, and their addresses."""
    import timm

    listed, registered = _listed(entry)
    if timm.is_model(registered):
        url = timm.get_pretrained_cfg(registered).url
        return f"{Path(torch.hub.get_dir()) / 'checkpoints' / Path(url).name} from {url}"
    ids, file = listed["gdrive_id"], paths.datasets("robustbench", entry.dataset, entry.norm, f"{entry.name}.pt")
    files = {f"{file}_m{i}.pt": drive_id for i, drive_id in enumerate(ids)} if isinstance(ids, list) else {file: ids}
    return ", ".join(f"{name} from https://drive.google.com/uc?id={drive_id}" for name, drive_id in files.items())
