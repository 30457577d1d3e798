"""CLIP models of open_clip, by name with published weights or a file. The extra `[clip]` installs open_clip."""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError

from multishield.errors import UserError, reason_of
from multishield.zero_shot import Clip

try:
    import open_clip
except ImportError as error:
    raise ImportError(f"{error}; models of open_clip need it: run `pip install 'multishield[clip]'`") from None
from open_clip.transform import PreprocessCfg

# Errors of open_clip and huggingface_hub for names and files that are absent, malformed, unreachable or damaged.
LOADING = (OSError, RuntimeError, ValueError, KeyError, UnpicklingError, SafetensorError)


def open_clip_model(model: str, pretrained: str | None = None) -> Clip:
    """A model of open_clip by name; open_clip downloads published weights once.

    The model is a name of `open_clip.list_models()`, or "hf-hub:owner/name" with its own weights. `pretrained` is a tag
    of published weights, or a weights file; None for "hf-hub:". A file does not state its preprocessing: it is the one
    that all published weights of the name share, or open_clip's default where they differ (ViT-L-14, ViT-H-14).
    Raises UserError if a name is unknown, the weights need another activation, or a download failed.
    """
    check_pretrained(model, pretrained)
    try:
        # Required: without weights on the hub, open_clip would go on with random ones.
        network = open_clip.create_model(model, pretrained=pretrained, require_pretrained=True)
    except LOADING as error:
        raise UserError(
            f"the weights {pretrained or model!r} of {model} could not be loaded ({reason_of(error)}); without a "
            "network give the path of a downloaded weights file as pretrained (alignment.pretrained)"
        ) from None
    config = dict(open_clip.get_model_preprocess_cfg(network))
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained and pretrained not in tags:
        keys = ("mean", "std", "interpolation", "resize_mode")
        published = [open_clip.get_pretrained_cfg(model, tag) for tag in tags]
        settings = [{key: one[key] for key in keys if one.get(key)} for one in published]
        config |= settings[0] if settings and all(s == settings[0] for s in settings) else {}
    return Clip(network, _tokenizer(model), PreprocessCfg(**config), saturate=True)


def check_pretrained(model: str, pretrained: str | None) -> None:
    """Check the arguments of `open_clip_model`. Nothing is loaded or downloaded; errors are the same."""
    if model.startswith(("hf-hub:", "local-dir:")):
        if pretrained is not None:
            given = f"pretrained (alignment.pretrained) is {pretrained!r}, but {model} brings its own weights"
            raise UserError(f"{given}; give None (in params.yaml write `pretrained: null`)")
        return
    if model not in open_clip.list_models():
        command = "python -c 'import open_clip; print(open_clip.list_models())'"
        raise UserError(f"model (alignment.model) is {model!r}, which open_clip does not know; its names: `{command}`")
    tags = open_clip.list_pretrained_tags_by_model(model)
    known = {tag: open_clip.get_pretrained_cfg(model, tag) for tag in tags}
    files = {Path(published.get("url") or tag).name: published for tag, published in known.items()}
    published = (known | files).get(Path(pretrained or "").name, {})  # a file by the name that it was published under
    quick = published.get("quick_gelu") or "quickgelu" in str(pretrained).lower()
    # open_clip only warns. The converse is no error: the tags of roberta-ViT-B-32 do not state its QuickGELU.
    if quick and not open_clip.get_model_config(model).get("quick_gelu"):
        given = f"model (alignment.model) is {model!r}, but the weights {pretrained!r} were trained with QuickGELU"
        raise UserError(f"{given}; write {model + '-quickgelu'!r}")
    if pretrained not in tags and not (pretrained and Path(pretrained).is_file()):
        given = f"pretrained (alignment.pretrained) is {pretrained!r}, but for {model} it must be the path of a weights"
        raise UserError(f"{given} file or one of: {', '.join(tags) or 'no tag exists'}")


def _tokenizer(model: str) -> Callable:
    """The model's tokenizer. Those of SigLIP and of multilingual models come from Hugging Face."""
    try:
        return open_clip.get_tokenizer(model)
    except (ImportError, *LOADING) as error:
        raise UserError(
            f"the tokenizer of {model} could not be loaded ({reason_of(error)}); it needs `pip install transformers` "
            "and one download from Hugging Face: copy the cache folder of a machine with a network, and set HF_HOME"
        ) from None
