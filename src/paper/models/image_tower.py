"""Another image tower for a CLIP: fine-tuned or robust weights, such as FARE and TeCoA, in place of its own.

Keys tell the layouts apart: transformers', and open_clip's and OpenAI's with or without `visual.`.
"""

from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from multishield.errors import UserError, reason_of
from multishield.files import load_tensors, read_json
from paper import paths
from paper.models.cifar_resnet import load_exactly, unwrapped

HUB = "hf-hub:"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
WEIGHTS += ("open_clip_pytorch_model.bin", "pytorch_model.bin")
CONFIGS = ("open_clip_config.json", "config.json")
# Names of transformers, and of open_clip's VisionTransformer; `pre_layrnorm` is spelt so there.
RENAMED = (
    "embeddings.class_embedding class_embedding; embeddings.patch_embedding. conv1.; "
    "embeddings.position_embedding.weight positional_embedding; pre_layrnorm. ln_pre.; post_layernorm. ln_post.; "
    "encoder.layers. transformer.resblocks.; .layer_norm .ln_; .mlp.fc1. .mlp.c_fc.; .mlp.fc2. .mlp.c_proj.; "
    ".self_attn. .attn."
)
RENAMED = [pair.split() for pair in RENAMED.split("; ")]
# Beginnings of keys beside the image tower: the text side, and numbers in OpenAI's files.
TEXT_SIDE = ("text", "transformer.", "token_embedding.", "ln_final.", "positional_embedding", "logit_", "attn_mask")
TEXT_SIDE += ("input_resolution", "context_length", "vocab_size")


def replace_tower(visual: nn.Module, source: str) -> None:
    """Load a file of weights, or those of "hf-hub:owner/name", into a CLIP's image tower; a text side is ignored.

    Files of transformers without `visual_projection` leave the projection as it is. Raises UserError if the weights
    cannot be read or do not fit, and unless a configuration beside them states the tower's own activation.
    """
    path = _weights_file(source)
    _check_activation(visual, path, source)
    weights = _image_side(unwrapped(_read(path)))
    if hasattr(visual, "proj") and any(".self_attn.q_proj." in key for key in weights):
        weights = _from_transformers(weights, visual.proj.detach().clone())
    load_exactly(visual, weights, source)


def _weights_file(source: str) -> Path:
    """The file of weights. From the Hugging Face hub, or its cache, comes the configuration beside it, too."""
    if not source.startswith(HUB):
        return paths.existing("alignment.image_tower", source, f'a weights file, or "{HUB}owner/name"')
    for name in CONFIGS + WEIGHTS:
        try:
            path = Path(hf_hub_download(source.removeprefix(HUB), name))
            if name in WEIGHTS:
                return path
        except (OSError, HFValidationError) as error:
            reason = reason_of(error)
            if not isinstance(error, EntryNotFoundError):  # no such file there, or not in the cache and no network
                break
    given = f"alignment.image_tower is {source!r}, of which no weights ({', '.join(WEIGHTS)}) could be loaded"
    raise UserError(f"{given} ({reason}); correct the name, or without a network give the path of a downloaded file")


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict of a file."""
    try:
        return load_tensors(path) if path.suffix == ".safetensors" else dict(torch.load(path, "cpu", weights_only=True))
    except (UnpicklingError, RuntimeError, EOFError, TypeError, ValueError) as error:
        given = f"{path} is not a file of tensors alone ({reason_of(error)[:120]}), and anything else may run code"
        raise UserError(f"{given}; convert it once with safetensors.torch.save_file(state_dict, path)") from None


def _image_side(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a CLIP's image tower, without prefix. Raises UserError for weights that belong to no CLIP."""
    prefix = next((p for p in ("visual.", "vision_model.") if any(k.startswith(p) for k in weights)), "")
    weights = {k: v for k, v in weights.items() if not k.endswith("position_ids")}  # numbers in old files
    inside = [k for k in weights if k.startswith((prefix, "visual_projection."))]
    if extra := [k for k in weights if k not in inside and not k.startswith(TEXT_SIDE)]:
        raise UserError(f"alignment.image_tower holds {extra[0]}, which belongs to no CLIP; give a CLIP's state dict")
    return {k.removeprefix(prefix): weights[k] for k in inside}


def _from_transformers(weights: dict[str, Tensor], projection: Tensor) -> dict[str, Tensor]:
    """Weights with open_clip's names, queries, keys and values joined; `projection` (width,D) is for those without."""
    out = {"proj": projection}
    for key, tensor in weights.items():
        for theirs, ours in RENAMED:
            key = key.replace(theirs, ours)
        out[key] = tensor
    if "visual_projection.weight" in out:
        out["proj"] = out.pop("visual_projection.weight").T
    for key in [k for k in out if ".attn.q_proj." in k]:
        three = [key.replace(".q_proj.", f".{name}_proj.") for name in "qkv"]
        if all(name in out for name in three):
            out[key.replace(".q_proj.", ".in_proj_")] = torch.cat([out.pop(name) for name in three])
    return out


def _activation(config: dict) -> str:
    """The activation that transformers' or open_clip's configuration states, such as "quick_gelu"; "" for none."""
    if "model_cfg" in config:
        flag = config["model_cfg"].get("quick_gelu", False)
        if not isinstance(flag, bool):
            raise UserError(f"the configuration beside the weights has quick_gelu {flag!r}; write true or false")
        return "quick_gelu" if flag else "gelu"
    if str(config.get("model_type", "")).startswith("clip"):  # with transformers' default for CLIP
        return config.get("vision_config", config).get("hidden_act", "quick_gelu")
    return ""


def _check_activation(visual: nn.Module, path: Path, source: str) -> None:
    """Raises UserError unless a configuration beside the weights states the tower's own activation."""
    given, files = f"alignment.image_tower is {source!r}", (path.with_name(name) for name in CONFIGS)
    theirs = next(filter(None, (_activation(read_json(file)) for file in files if file.is_file())), None)
    if not theirs:
        reason = f"beside which no {' or '.join(CONFIGS)} states the activation, and a wrong one loads without an error"
        raise UserError(f'{given}, {reason}; put one there, such as {{"model_cfg": {{"quick_gelu": true}}}}')
    ours = "quick_gelu" if any(isinstance(m, QuickGELU) for m in visual.modules()) else "gelu"
    if theirs != ours:
        choice = f"a name {'without' if theirs == 'gelu' else 'with'} '-quickgelu'"
        raise UserError(f"{given} with activation {theirs!r}, but alignment.model has {ours!r}; choose {choice}")
