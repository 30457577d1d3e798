"""Image towers from elsewhere: transformers is the reference; every layout round trips or says why not."""

import json
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from hub import offline, repository, small_clip
from multishield.errors import UserError
from paper.models import image_tower


def fine_tuned(clip) -> dict:
    """The weights of a CLIP, all moved a little."""
    return {k: v + 0.001 * torch.randn(v.shape) if v.is_floating_point() else v for k, v in clip.state_dict().items()}


def visual_of(weights: dict) -> dict:
    return {k.removeprefix("visual."): v for k, v in weights.items() if k.startswith("visual.")}


@pytest.fixture(autouse=True)
def _config_beside_the_weights(project_root):
    (project_root / "config.json").write_text('{"model_cfg": {"quick_gelu": true}}')


def hugging_face(activation="quick_gelu"):
    """A small CLIPModel of transformers with large random weights, so that the activation matters."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**size, "image_size": 32, "patch_size": 8, "hidden_act": activation}
    config = transformers.CLIPConfig(text_config=size, vision_config=vision, projection_dim=48)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def logits(visual, model, pixels, tokens) -> torch.Tensor:
    text = model(input_ids=tokens, pixel_values=pixels).text_embeds
    return model.logit_scale.exp() * normalize(visual(pixels), dim=-1) @ normalize(text, dim=-1).T


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_a_clip_of_transformers_gives_its_logits(activation, project_root):
    theirs = hugging_face(activation)
    theirs.save_pretrained(project_root)
    ours = small_clip(activation == "quick_gelu").visual
    image_tower.replace_tower(ours, str(project_root / "model.safetensors"))
    pixels, tokens = torch.randn(4, 3, 32, 32), torch.randint(0, 49000, (5, 16))
    expected = theirs(input_ids=tokens, pixel_values=pixels).logits_per_image
    assert (logits(ours, theirs, pixels, tokens) - expected).abs().max() < 1e-4
    # The comparison can fail: the same weights with the other activation.
    other = small_clip(activation != "quick_gelu").visual
    other.load_state_dict(ours.state_dict())
    assert (logits(other, theirs, pixels, tokens) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("prefix", ["", "vision_model."])
@torch.no_grad()
def test_a_vision_model_without_projection_keeps_the_bases(prefix, project_root):
    # As tanganke/clip-vit-base-patch32_cifar10; transformers 4 wrote the prefix, transformers 5 does not.
    theirs = hugging_face().vision_model
    weights = {prefix + k: v.contiguous() for k, v in theirs.state_dict().items()}
    weights[f"{prefix}embeddings.position_ids"] = torch.arange(17)[None]
    save_file(weights, project_root / "model.safetensors")
    (project_root / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", "num_attention_heads": 2}))
    ours = small_clip().visual
    projection = ours.proj.clone()
    image_tower.replace_tower(ours, "model.safetensors")
    assert torch.equal(ours.proj, projection)
    pixels = torch.randn(4, 3, 32, 32)
    pooled = theirs(pixel_values=pixels).pooler_output
    assert (ours(pixels) - pooled @ projection).abs().max() < 1e-4


@pytest.mark.parametrize("layout", ["bare", "openai", "safetensors"])
def test_robust_towers_in_open_clips_layout(layout, project_root):
    clip = small_clip()
    weights = fine_tuned(clip)
    if layout == "openai":
        weights = {k: v.half() for k, v in weights.items()}
    content = {
        "bare": visual_of(weights),  # FARE and TeCoA as their authors publish them
        "openai": {**weights, "input_resolution": torch.tensor(32), "context_length": torch.tensor(16)},
        "safetensors": {f"module.{k}": v for k, v in weights.items()},  # of a parallel model
    }
    path = project_root / ("tower.safetensors" if layout == "safetensors" else "tower.pt")
    (save_file if layout == "safetensors" else torch.save)(content[layout], path)
    text = clip.transformer.resblocks[0].mlp.c_fc.weight.clone()
    image_tower.replace_tower(clip.visual, str(path))
    assert all(torch.equal(v, visual_of(weights)[k].float()) for k, v in clip.visual.state_dict().items())
    assert torch.equal(clip.transformer.resblocks[0].mlp.c_fc.weight, text), "the text side is the base's"


def test_towers_that_do_not_fit_say_so(project_root):
    clip, path = small_clip(), project_root / "tower.safetensors"

    def refused(weights, words):
        save_file({k: v.contiguous() for k, v in weights.items()}, path)
        with pytest.raises(UserError, match=words):
            image_tower.replace_tower(clip.visual, str(path))

    good = visual_of(fine_tuned(clip))
    refused(visual_of(small_clip(width=192).state_dict()), "size mismatch for")
    refused(visual_of(small_clip(layers=3).state_dict()), "Unexpected key.*transformer.resblocks.2")
    refused({k: v for k, v in good.items() if k != "proj"}, 'Missing key.*: "proj"')
    refused({**good, "head.weight": torch.ones(1)}, 'Unexpected key.*: "head.weight"')
    refused({f"visual.{k}": v for k, v in good.items()} | {"head.weight": torch.ones(1)}, "belongs to no CLIP")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, 'no open_clip_config.json or config.json states the activation, .* put one there, such as {"model_cfg"'),
        ({"model_cfg": {}}, "activation 'gelu', but alignment.model has 'quick_gelu'.* without '-quickgelu'"),
        ({"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}, "activation 'gelu'"),
        ({"model_cfg": {"quick_gelu": "false"}}, "quick_gelu 'false'; write true or false"),
        ({"model_cfg": {"quick_gelu": True}}, None),
        ({"model_type": "clip_vision_model", "hidden_act": "quick_gelu"}, None),
    ],
)
def test_the_activation_that_a_configuration_states(config, words, project_root):
    save_file(visual_of(small_clip().state_dict()), project_root / "tower.safetensors")
    (project_root / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words) if words else nullcontext():
        image_tower.replace_tower(small_clip().visual, "tower.safetensors")


def test_files_that_are_no_weights(project_root):
    torch.save({"model": small_clip().visual}, project_root / "pickled.pt")
    (project_root / "page.pt").write_text("<html>")
    torch.save({"epoch": 1}, project_root / "empty.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), project_root / "jit.pt")
    torch.save([torch.ones(1)], project_root / "list.pt")
    reasons = {"pickled": "may run code", "empty": "Missing key", "absent": "not a file; give the path"}
    for name, words in (reasons | dict.fromkeys(("page", "jit", "list"), "not a file of tensors")).items():
        with pytest.raises(UserError, match=words):
            image_tower.replace_tower(small_clip().visual, f"{name}.pt")


def test_a_tower_from_the_hub(project_root, monkeypatch):
    offline(monkeypatch, project_root)
    snapshot, clip = repository(project_root, "someone/fare"), small_clip()
    weights = fine_tuned(clip)
    torch.save(weights, snapshot / "open_clip_pytorch_model.bin")
    (project_root / "config.json").rename(snapshot / "open_clip_config.json")
    image_tower.replace_tower(clip.visual, "hf-hub:someone/fare")
    assert torch.equal(clip.visual.proj, weights["visual.proj"])
    for name in ("hf-hub:someone/else", "hf-hub:not a name"):
        with pytest.raises(UserError, match=r"no weights .* could be loaded .* correct the name"):
            image_tower.replace_tower(clip.visual, name)
