"""Another image tower for a CLIP: fine-tuned or robust weights in place of its own.

Layouts, told apart by their keys: Hugging Face's transformers (CLIPVisionModel, CLIPVisionModelWithProjection,
CLIPModel), and open_clip's and OpenAI's own, with or without `visual.` (as FARE and TeCoA, Schlarmann et al. 2024).
Weights do not say with which activation they were trained, and a wrong one fits without an error: see `replace_tower`.
"""

import re
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from multishield.errors import UserError, reason_of
from multishield.files import read_json
from multishield.tensors import load_tensors
from paper import paths
from paper.models.cifar_resnet import load_exactly

HUB = "hf-hub:"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
CONFIGS = ("open_clip_config.json", "config.json")
# transformers' names for the parts of open_clip's VisionTransformer; `pre_layrnorm` is theirs.
RENAMED = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.": "conv1.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
    "encoder.layers.": "transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.": ".attn.",
}
# What may stand beside the image tower and is not needed: the text side, and position numbers that old files hold.
TEXT_SIDE = re.compile(
    r"(text\.|text_model\.|transformer\.|token_embedding\.|ln_final\.|text_projection|positional_embedding$|attn_mask$"
    r"|logit_scale$|logit_bias$|input_resolution$|context_length$|vocab_size$)"
)
POSITIONS = re.compile(r"(^|\.)position_ids$")
# Cosine between two towers' weight matrices: fine-tuning leaves it near 1, independent trainings near 0.
KIN = 0.5


def replace_tower(visual: nn.Module, source: str) -> None:
    """Load other weights over those published; nothing may be missing, or extra but what is not the image tower.

    A file of transformers without `visual_projection` leaves the projection as it is. The activation (QuickGELU or
    GELU) must be the tower's own: a `config.json` or `open_clip_config.json` beside the weights says it. Without one,
    the weights must be recognisable as fine-tuned from those that they replace: then their activation is known to be
    the same.

    Args:
        visual: a CLIP's image tower, with its published weights.
        source: a file (.safetensors, or .pt, .pth, .bin with nothing but tensors), or "hf-hub:owner/name".

    Raises:
        UserError: the source cannot be read, does not fit, or has another activation or an unknown one.
    """
    path, config = _from_hub(source) if source.startswith(HUB) else from_disk(source)
    weights = image_side(read_weights(path), source)
    _check_config(visual, config, source)
    before = {name: tensor.clone() for name, tensor in visual.state_dict().items()}
    if "proj" in before and any(".self_attn.q_proj." in key for key in weights):
        weights = from_transformers(weights, before["proj"])
    load_exactly(visual, weights, source)
    if not stated_activation(config) and kinship(before, weights) < KIN:
        raise UserError(
            f"alignment.image_tower is {source!r}, whose weights are not fine-tuned from the tower that they replace, "
            "and no config.json beside them says their activation; choose the model and pretrained tag that they were "
            "fine-tuned from, or add the file that they were published with"
        )


def _from_hub(source: str) -> tuple[Path, dict]:
    """Weights and configuration of a repository on the Hugging Face hub, from its cache where they are there."""
    name, files, reasons = source.removeprefix(HUB), {}, []
    for kind in (WEIGHTS, CONFIGS):
        for file in kind:
            try:
                files[kind] = Path(hf_hub_download(name, file))
                break
            except EntryNotFoundError as error:  # no such file there, or not in the cache and no network
                reasons.append(error)
            except (OSError, HFValidationError) as error:
                raise _unreachable(source, error) from None
        if WEIGHTS not in files:
            raise _unreachable(source, reasons[-1])
    return files[WEIGHTS], read_json(files[CONFIGS]) if CONFIGS in files else {}


def _unreachable(source: str, error: Exception) -> UserError:
    return UserError(
        f"alignment.image_tower is {source!r}, of which no weights ({', '.join(WEIGHTS)}) could be loaded "
        f"({reason_of(error)}); correct the name, or without a network give the path of a downloaded file"
    )


def from_disk(source: str) -> tuple[Path, dict]:
    """A weights file, and the configuration beside it if there is one that is a CLIP's."""
    path = paths.existing("alignment.image_tower", source, f'a weights file, or "{HUB}owner/name"')
    for name in CONFIGS:
        if path.with_name(name).is_file():
            config = read_json(path.with_name(name))
            if stated_activation(config):
                return path, config
    return path, {}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a torch file that holds nothing but tensors, as float32.

    Raises UserError if the file is neither.
    """
    if path.suffix == ".safetensors":
        found = load_tensors(path)
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(
                f"{path} is not a file of tensors alone ({reason_of(error)[:120]}), and anything else may "
                "run code when it is loaded; convert it once with safetensors.torch.save_file(state_dict, path)"
            ) from None
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    tensors = {k.removeprefix("module."): v for k, v in found.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no named tensors; give a state dict of an image tower or of a whole CLIP")
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def image_side(weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The image tower's part of a CLIP's weights, prefix removed; of a bare tower all.

    Raises UserError if beside `visual.` or `vision_model.` stands what belongs to no text side.
    """
    weights = {k: v for k, v in weights.items() if not POSITIONS.search(k)}
    prefix = next((p for p in ("visual.", "vision_model.") if any(k.startswith(p) for k in weights)), "")
    if not prefix:
        return weights
    inside = ("visual_projection.", prefix)
    extra = sorted(k for k in weights if not k.startswith(inside) and not TEXT_SIDE.match(k))
    if extra:
        raise UserError(f"{source} holds {extra[:2]}, which belong to no CLIP; give a state dict of a CLIP")
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(inside)}


def from_transformers(weights: dict[str, Tensor], projection: Tensor) -> dict[str, Tensor]:
    """transformers' names to open_clip's, queries, keys and values joined; `projection` (width,D) if they have none."""
    out = {"proj": projection}
    for key, tensor in weights.items():
        for theirs, ours in RENAMED.items():
            key = key.replace(theirs, ours)
        out[key] = tensor
    if "visual_projection.weight" in out:
        out["proj"] = out.pop("visual_projection.weight").T
    for key in [k for k in out if ".attn.q_proj." in k]:
        parts = [key.replace(".q_proj.", f".{p}_proj.") for p in "qkv"]
        if all(part in out for part in parts):
            out[key.replace(".q_proj.", ".in_proj_")] = torch.cat([out.pop(part) for part in parts])
    return out


def stated_activation(config: dict) -> str:
    """ "quick_gelu", "gelu" or another name, from transformers' or open_clip's configuration; "" where it says none."""
    if "model_cfg" in config:
        return "quick_gelu" if config["model_cfg"].get("quick_gelu") else "gelu"
    if str(config.get("model_type", "")).startswith("clip"):
        # Where transformers' configuration leaves it out, its default for CLIP holds.
        return config.get("vision_config", config).get("hidden_act", "quick_gelu")
    return ""


def _check_config(visual: nn.Module, config: dict, source: str) -> None:
    theirs = stated_activation(config)
    ours = "quick_gelu" if any(isinstance(m, QuickGELU) for m in visual.modules()) else "gelu"
    if theirs and theirs != ours:
        choice = "with" if theirs == "quick_gelu" else "without"
        raise UserError(
            f"alignment.image_tower is {source!r}, whose configuration says activation {theirs!r}, but alignment.model "
            f"has {ours!r}; choose the model of the same size {choice} '-quickgelu' in its name"
        )
    heads = config.get("vision_config", config).get("num_attention_heads")
    own = [m.num_heads for m in visual.modules() if isinstance(m, nn.MultiheadAttention)]
    if heads and own and heads != own[0]:
        raise UserError(
            f"alignment.image_tower is {source!r} with {heads} attention heads, but alignment.model has {own[0]}; "
            "choose the model that it was fine-tuned from"
        )


def kinship(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Cosine between two towers' weight matrices, of one shape; vectors (norms, biases) are alike in all towers."""
    names = [name for name, tensor in a.items() if tensor.ndim >= 2]
    product, ours, theirs = (
        sum((x[name].double() * y[name].double()).sum().item() for name in names) for x, y in ((a, b), (a, a), (b, b))
    )
    return product / (ours * theirs) ** 0.5
