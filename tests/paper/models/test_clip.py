"""CLIPs of the pipeline: by name, from files, from a function; what the alignment stage keeps of them."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from pydantic import TypeAdapter

from hub import CONFIG, offline, put_clip
from multishield.errors import UserError
from multishield.files import save_tensors, write_json
from multishield.images import Images
from multishield.zero_shot import embed_prompts
from paper import paths
from paper.models import alignment as alignments
from paper.models import clip as clips
from paper.params.sections import Clips
from paper.stages import alignment

PROMPTS = ["this is a photo of a {}", "a drawing of a {}"]
CLASSES = ["star", "polar bear", "ring"]


@pytest.fixture(autouse=True)
def _offline(project_root, monkeypatch):
    offline(monkeypatch, project_root / "hub")


def section(source: str, **values) -> Clips:
    return TypeAdapter(Clips).validate_python({"source": source, "prompts": PROMPTS, **values})


def named(model, pretrained=None, **more) -> Clips:
    return section("open_clip", model=model, pretrained=pretrained, **more)


def files(root, model, config=CONFIG, **more) -> Clips:
    save_tensors(root / "clip.safetensors", model.state_dict())
    write_json(root / "clip.json", config)
    return section("file", config="clip.json", weights="clip.safetensors", **more)


def stored(root, params: Clips):
    """A CLIP and its scores before, and after the files of the alignment stage are written and read."""
    made = clips.load_clip(params)
    text = embed_prompts(made, CLASSES, PROMPTS)
    alignments.save_alignment(made, params, text, root / "artifacts" / "alignment")
    loaded = alignments.load_alignment()
    assert torch.equal(loaded.text.cpu(), text)
    assert not any(p.requires_grad for p in loaded.parameters())
    return made, loaded


def test_another_image_tower_in_a_clip_from_the_hub(project_root):
    weights = put_clip(project_root / "hub", "someone/base")
    moved = {k.removeprefix("visual."): v + 0.001 for k, v in weights.items() if k.startswith("visual.")}
    torch.save(moved, project_root / "fare.pt")
    write_json(project_root / "config.json", {"model_cfg": {"quick_gelu": True}})
    made, _ = stored(project_root, named("hf-hub:someone/base", image_tower="fare.pt"))
    assert torch.equal(made.model.visual.proj.cpu(), moved["proj"])
    assert torch.equal(made.model.text_projection.cpu(), weights["text_projection"])
    torch.save({k: v + 0.001 for k, v in moved.items()}, project_root / "fare.pt")
    with pytest.raises(UserError, match=r"alignment\.image_tower is another than .*; put that one back, or run"):
        alignments.load_alignment()
    written = json.loads((project_root / "artifacts" / "alignment" / "clip.json").read_text())
    assert written["preprocessing"]["resize_mode"] == "squash"


def test_a_clip_from_files(project_root):
    torch.manual_seed(0)
    model = clips.build_clip(CONFIG).model
    made, _ = stored(project_root, files(project_root, model, antialias=False))
    assert not made.antialias
    for other, config in ((clips.build_clip(CONFIG).model, CONFIG), (model, CONFIG | {"quick_gelu": True})):
        files(project_root, other, config)
        with pytest.raises(UserError, match=f"alignment.{'weights' if config is CONFIG else 'config'} is another"):
            alignments.load_alignment()
    assert torch.equal(made.model.visual.proj.cpu(), model.visual.proj)
    for config, words in (({**CONFIG, "embed_dim": 64}, "mismatch"), ({"embed_dim": 3}, "not a CLIP configuration")):
        with pytest.raises(UserError, match=words):
            clips.load_clip(files(project_root, model, config))
    params = files(project_root, model)
    (project_root / "clip.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        clips.load_clip(params)


def test_a_clip_from_a_function(project_root):
    code = f"from paper.models.clip import build_clip\nsmall = lambda: build_clip({CONFIG})\nwrong = lambda: 3\n"
    (project_root / "mine_clip.py").write_text(code)
    stored(project_root, section("factory", factory="mine_clip:small"))
    with pytest.raises(UserError, match=r"returned int; it must return a multishield\.Clip"):
        clips.load_clip(section("factory", factory="mine_clip:wrong"))
    params, stage = section("factory", factory="mine_clip:small"), object.__new__(alignment.Stage)
    data = Images(torch.rand(4, 3, 32, 32), torch.zeros(4).long(), torch.arange(4))
    vars(stage).update(params=SimpleNamespace(alignment=params), data=data, folder=paths.artifacts("alignment"))
    text = embed_prompts(made := clips.load_clip(params), CLASSES, PROMPTS)  # each call has other random weights
    with pytest.raises(UserError, match="the CLIP of alignment answers otherwise once it was stored and loaded"):
        stage.save(made, text, pd.DataFrame(), pd.DataFrame())


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (named("ViT-B-23", "openai"), r"model \(alignment.model\) is 'ViT-B-23', which open_clip does not know"),
        (named("ViT-B-32", "absent.pt"), r"pretrained \(alignment.pretrained\) is 'absent.pt'"),
        (named("ViT-B-32", "laion2b_s34b_b79k", image_tower="absent.pt"), "alignment.image_tower is 'absent.pt'"),
        (section("file", config="a.json", weights="b"), "alignment.config is 'a.json'"),
        (section("factory", factory="absent:clip"), "is 'absent:clip', but absent cannot be imported"),
        (section("factory", factory="json:absent"), "no function absent"),
    ],
)
def test_mistakes_are_found_before_the_first_stage(params, words):
    with pytest.raises(UserError, match=words):
        clips.check(params)


def test_sound_parameters_pass_the_check_without_a_download(project_root, monkeypatch):
    (project_root / "here.pt").touch()
    (project_root / "notebooks").mkdir()
    monkeypatch.chdir(project_root / "notebooks")  # paths of params.yaml are relative to the project's root
    clips.check(named("ViT-B-32", "here.pt", image_tower="here.pt"))
    clips.check(named("hf-hub:someone/unseen", image_tower="hf-hub:someone/unseen"))
    clips.check(named("ViT-L-14", "laion2b_s32b_b82k"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resize_mode": "zoom"}, "resize_mode is 'zoom'; accepted are squash, shortest, longest"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos'"),
        ({"mean": [125.0, 125.0, 125.0]}, r"mean is \[125.0.* pixels in \[0,1\], not in 0..255"),
        ({"std": [0.2, 0.0, 0.2]}, "std is"),
        ({"colour": 1}, "is not a CLIP configuration"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        clips.build_clip(CONFIG | {"preprocess_cfg": CONFIG["preprocess_cfg"] | changes})
    with pytest.raises(UserError, match="is not a CLIP configuration"):
        clips.build_clip({"embed_dim": 8, "vision_cfg": "x", "text_cfg": []})
    vision = CONFIG["vision_cfg"] | {"timm_model_pretrained": 0}
    for wrong in ({"quick_gelu": "false"}, {"quickgelu": True}, {"vision_cfg": vision}, {"model_cfg": {}}):
        with pytest.raises(UserError, match="is an unknown key, or a flag that is neither true nor false"):
            clips.build_clip(CONFIG | wrong)


def test_the_activation_of_a_configuration_counts():
    plain, quick = (clips.build_clip({**CONFIG, "quick_gelu": quick}) for quick in (False, True))
    assert "QuickGELU" in str(quick.model.visual)
    assert "QuickGELU" not in str(plain.model.visual)
    quick.model.load_state_dict(plain.model.state_dict())
    assert not torch.equal(*(embed_prompts(clip, CLASSES, PROMPTS) for clip in (plain, quick)))
