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
from paper.models.cifar_resnet import load_exactly

HUB = "hf-hub:"
SAFETENSORS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
WEIGHTS = (*SAFETENSORS, "open_clip_pytorch_model.bin", "pytorch_model.bin")
CONFIGS = ("open_clip_config.json", "config.json")
# Names of transformers, and of open_clip's VisionTransformer; `pre_layrnorm` is spelt so there.
RENAMED = (
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.patch_embedding.", "conv1."),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("pre_layrnorm.", "ln_pre."),
    ("post_layernorm.", "ln_post."),
    ("encoder.layers.", "transformer.resblocks."),
    (".layer_norm", ".ln_"),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.", ".attn."),
)
# Beginnings of keys beside the image tower that are not needed: the text side, and numbers that OpenAI's files hold.
OTHERS = ("text", "transformer.", "token_embedding.", "ln_final.", "positional_embedding", "attn_mask", "logit_")
OTHERS += ("input_resolution", "context_length", "vocab_size")
# Cosine between two towers' weight matrices: fine-tuning leaves it near 1, independent trainings near 0.
KIN = 0.5


def replace_tower(visual: nn.Module, source: str) -> None:
    """Load a file of weights, or those of "hf-hub:owner/name", into a CLIP's image tower; a text side is ignored.

    Files of transformers without `visual_projection` leave the projection as it is. A wrong activation fits without an
    error. So a configuration beside the weights must state the tower's own, or the weights must be recognisable as
    fine-tuned from the tower's. Raises UserError if they are neither, cannot be read, or do not fit.
    """
    path = _weights_file(source)
    weights = _image_side(_read(path), source)
    configs = (read_json(path.with_name(name)) for name in CONFIGS if path.with_name(name).is_file())
    config = next((config for config in configs if _activation(config)), {})
    _check_config(visual, config, source)
    before = {name: tensor.clone() for name, tensor in visual.state_dict().items()}
    if "proj" in before and any(".self_attn.q_proj." in key for key in weights):
        weights = _from_transformers(weights, before["proj"])
    load_exactly(visual, weights, source)
    if not config and _kinship(before, weights) < KIN:
        raise UserError(
            f"alignment.image_tower is {source!r}, whose weights are not fine-tuned from the tower that they replace, "
            "and no config.json beside them states their activation; add that file, or choose the model they are from"
        )


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
    """The tensors of a file, as float32."""
    try:
        content = load_tensors(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        given = f"{path} is not a file of tensors alone ({reason_of(error)[:120]}), and anything else may run code"
        raise UserError(f"{given}; convert it once with safetensors.torch.save_file(state_dict, path)") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no named tensors; give a state dict of an image tower or of a whole CLIP")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _image_side(weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights of a CLIP's image tower, without prefix."""
    weights = {k: v for k, v in weights.items() if not k.endswith("position_ids")}  # numbers that old files hold
    prefix = next((p for p in ("visual.", "vision_model.") if any(k.startswith(p) for k in weights)), "")
    inside = ("visual_projection.", prefix)
    extra = sorted(k for k in weights if not k.startswith((*inside, *OTHERS)))
    if extra:
        raise UserError(f"{source} holds {extra[:2]}, which belong to no CLIP; give a state dict of a CLIP")
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(inside)}


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
        return "quick_gelu" if config["model_cfg"].get("quick_gelu") else "gelu"
    if str(config.get("model_type", "")).startswith("clip"):  # with transformers' default for CLIP
        return config.get("vision_config", config).get("hidden_act", "quick_gelu")
    return ""


def _check_config(visual: nn.Module, config: dict, source: str) -> None:
    """Raises UserError if a configuration states another activation or number of heads than the tower has."""
    theirs, heads = _activation(config), config.get("vision_config", config).get("num_attention_heads")
    ours = "quick_gelu" if any(isinstance(m, QuickGELU) for m in visual.modules()) else "gelu"
    own = next((m.num_heads for m in visual.modules() if isinstance(m, nn.MultiheadAttention)), heads)
    given, model = f"alignment.image_tower is {source!r} with", "but alignment.model has"
    if theirs and theirs != ours:
        choice = "with" if theirs == "quick_gelu" else "without"
        raise UserError(f"{given} activation {theirs!r}, {model} {ours!r}; choose a name {choice} '-quickgelu'")
    if heads and heads != own:
        raise UserError(f"{given} {heads} attention heads, {model} {own}; choose the model that it was fine-tuned from")


def _kinship(before: dict[str, Tensor], weights: dict[str, Tensor]) -> float:
    """Cosine between two towers' weight matrices. Vectors (norms, biases) are alike in all towers."""
    names = [name for name, tensor in before.items() if tensor.ndim >= 2]
    towers = ((before, weights), (before, before), (weights, weights))
    dot, ours, theirs = (sum((a[n].double() * b[n].double()).sum().item() for n in names) for a, b in towers)
    return dot / (ours * theirs) ** 0.5
