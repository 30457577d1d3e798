"""Where CLIPs come from: names, hubs, files and factories; text embeddings that are computed once."""

import json

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from multishield import resume as checkpoints
from multishield.errors import UserError
from multishield.files import write_json
from paper import paths
from paper.models import clip as clips
from paper.models import zero_shot
from paper.params import ClipFactory, ClipFile, ClipOpen, choices

PROMPTS = ["this is a photo of a {}", "a drawing of a {}"]
CLASSES = ["star", "polar bear", "ring", "heart", "moon"]
TOWERS = {
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
CONFIG = {"embed_dim": 48, **TOWERS, "preprocess_cfg": {"size": 32}}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").touch()
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def named(model, pretrained=None, **more) -> ClipOpen:
    return ClipOpen(source="open_clip", prompts=PROMPTS, model=model, pretrained=pretrained, **more)


@pytest.fixture
def clip():
    return clips.build_clip(CONFIG, antialias=True)


def on_the_hub(project, name: str, weights: bool = True) -> dict:
    """Put a small CLIP with CLIPA's mean and std into Hugging Face's cache; returns its weights."""
    folder = project / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    preprocess = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resize_mode": "squash"}
    config = {"model_cfg": {"embed_dim": 48, "quick_gelu": True, **TOWERS}, "preprocess_cfg": preprocess}
    write_json(folder / "snapshots" / "0" / "open_clip_config.json", config)
    model = open_clip.CLIP(48, dict(TOWERS["vision_cfg"]), dict(TOWERS["text_cfg"]), quick_gelu=True)
    if weights:
        save_file(model.state_dict(), folder / "snapshots" / "0" / "open_clip_model.safetensors")
    return model.state_dict()


def test_a_clip_from_the_hub_with_its_own_preprocessing(project):
    weights = on_the_hub(project, "UCSC-VLAA/small")
    made = clips.load_clip(named("hf-hub:UCSC-VLAA/small"))
    assert all(torch.equal(v, weights[k]) for k, v in made.model.state_dict().items())
    assert list(made.preprocessing.mean) == [0.485, 0.456, 0.406]
    assert made.preprocessing.size in (32, (32, 32))
    assert made.preprocessing.resize_mode == "squash"
    module = zero_shot.align(made, zero_shot.embed_prompts(made, CLASSES, PROMPTS))
    assert module(torch.rand(2, 3, 40, 40)).shape == (2, 5)


def test_hub_repositories_that_are_absent_or_without_weights(project):
    on_the_hub(project, "someone/empty", weights=False)
    for name in ("hf-hub:someone/empty", "hf-hub:someone/else"):
        with pytest.raises(UserError, match=f"the weights '{name}' of {name} could not be loaded"):
            clips.load_clip(named(name))
    with pytest.raises(UserError, match="write `pretrained: null`"):
        clips.load_clip(named("hf-hub:someone/empty", "openai"))


def test_another_image_tower_in_a_clip_from_the_hub(project):
    weights = on_the_hub(project, "someone/base")
    moved = {k.removeprefix("visual."): v + 0.001 for k, v in weights.items() if k.startswith("visual.")}
    torch.save(moved, project / "fare.pt")
    made = clips.load_clip(named("hf-hub:someone/base", image_tower="fare.pt"))
    assert torch.equal(made.model.visual.proj, moved["proj"])
    assert torch.equal(made.model.text_projection, weights["text_projection"])


def test_names_and_files_are_checked_before_the_first_stage(project):
    for params, words in (
        (named("ViT-B-23", "openai"), "alignment.model is 'ViT-B-23', which open_clip does not know"),
        (named("ViT-B-32", "absent.pt"), "alignment.pretrained is 'absent.pt'"),
        (named("ViT-B-32", "laion2b_s34b_b79k", image_tower="absent.pt"), "alignment.image_tower is 'absent.pt'"),
        (ClipFile(source="file", prompts=PROMPTS, config="a.json", weights="b"), "alignment.config is 'a.json'"),
    ):
        with pytest.raises(UserError, match=words):
            clips.check(params)
    (project / "here.pt").touch()
    for params in (
        named("ViT-B-32", "here.pt", image_tower="here.pt"),
        named("hf-hub:someone/unseen", image_tower="hf-hub:someone/unseen"),
        named("ViT-L-14", "laion2b_s32b_b82k"),
    ):
        clips.check(params)


def test_a_missing_function_is_named_before_the_first_stage():
    with pytest.raises(UserError, match=r"alignment.factory is 'absent:clip', but absent cannot be imported"):
        clips.check(ClipFactory(source="factory", prompts=PROMPTS, factory="absent:clip"))


def test_weights_with_quickgelu_need_a_model_with_it():
    for name, tag in (("ViT-B-32", "openai"), ("ViT-L-14", "metaclip_400m")):
        with pytest.raises(UserError, match=f"write '{name}-quickgelu'"):
            clips.load_clip(named(name, tag))
        assert f"{name}-quickgelu" in open_clip.list_models()


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("<html>"),
        lambda path: torch.save({"model": torch.nn.Linear(1, 1)}, path),
        lambda path: torch.save({"visual.conv1.weight": torch.ones(1)}, path),
    ],
)
def test_weights_files_that_are_damaged_or_of_another_model(write, project):
    write(project / "weights.pt")
    with pytest.raises(UserError, match=r"'weights\.pt' of RN50-quickgelu could not be loaded"):
        clips.load_clip(named("RN50-quickgelu", "weights.pt"))


def test_quickgelu_of_a_configuration_is_heeded(project):
    assert "QuickGELU" in str(clips.build_clip({**CONFIG, "quick_gelu": True}, True).model.visual)
    assert "QuickGELU" not in str(clips.build_clip(CONFIG, True).model.visual)


def test_a_factory(project, monkeypatch):
    (project / "mine_clip.py").write_text(
        "from paper.models import clip as clips\n"
        f"def small():\n    return clips.build_clip({CONFIG}, True)\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(str(project))
    params = ClipFactory(source="factory", prompts=PROMPTS, factory="mine_clip:small")
    made = clips.load_clip(params)
    text = zero_shot.keep_embeddings(made, CLASSES, PROMPTS)
    zero_shot.save_alignment(made, params, None, text, project / "artifacts" / "alignment")
    loaded = zero_shot.load_alignment()
    assert torch.equal(loaded.text.cpu(), text)
    with pytest.raises(UserError, match=r"returned int; it must return a multishield\.models\.clip\.Clip"):
        clips.load_clip(ClipFactory(source="factory", prompts=PROMPTS, factory="mine_clip:wrong"))
    with pytest.raises(UserError, match="no function absent"):
        choices.load_factory("alignment.factory", "mine_clip:absent")


def counted(clip, monkeypatch) -> list[int]:
    """Sizes of the batches that the text tower is given from now on."""
    sizes, encode = [], clip.model.encode_text
    monkeypatch.setattr(clip.model, "encode_text", lambda t, **more: sizes.append(len(t)) or encode(t, **more))
    return sizes


def test_kept_text_embeddings_are_the_same_bytes_and_computed_once(clip, monkeypatch):
    monkeypatch.setenv(paths.RUN, "03_alignment")  # within a stage, what is kept stays until it ends
    expected = zero_shot.embed_prompts(clip, CLASSES, PROMPTS)
    monkeypatch.setattr(zero_shot, "BLOCK", 2)
    sizes = counted(clip, monkeypatch)
    first = zero_shot.keep_embeddings(clip, CLASSES, PROMPTS)
    assert sizes == [2] * 5, "all prompts of a class at once"
    assert torch.equal(zero_shot.keep_embeddings(clip, CLASSES, PROMPTS), first)
    assert sizes == [2] * 5, "the text tower has not run again"
    assert torch.equal(first, expected)


def test_what_text_embeddings_depend_on(clip, monkeypatch):
    monkeypatch.setenv(paths.RUN, "03_alignment")
    zero_shot.keep_embeddings(clip, CLASSES, PROMPTS)
    sizes = counted(clip, monkeypatch)

    def runs(classes=CLASSES, prompts=PROMPTS) -> bool:
        sizes.clear()
        zero_shot.keep_embeddings(clip, classes, prompts)
        return bool(sizes)

    assert runs(classes=CLASSES[::-1])
    assert runs(prompts=PROMPTS[:1])
    with torch.no_grad():
        next(clip.model.visual.parameters()).add_(1)
    assert not runs(), "the image tower does not count"
    with torch.no_grad():
        clip.model.text_projection.add_(0.1)
    assert runs()


def test_the_activation_of_the_text_tower_counts():
    plain, quick = (open_clip.CLIP(48, **{k: dict(v) for k, v in TOWERS.items()}, quick_gelu=q) for q in (False, True))
    quick.load_state_dict(plain.state_dict())
    made = [clips.Clip(m, open_clip.SimpleTokenizer(context_length=16), None) for m in (plain, quick)]
    first, second = (zero_shot.keep_embeddings(c, CLASSES, PROMPTS) for c in made)
    assert not torch.equal(first, second)


def test_text_embeddings_go_on_at_the_last_block(clip, monkeypatch):
    expected = zero_shot.embed_prompts(clip, CLASSES, PROMPTS)
    monkeypatch.setattr(zero_shot, "BLOCK", 2)
    calls = []

    put = checkpoints.Checkpoint.put

    def killed(self, name, value):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return put(self, name, value)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoint, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            zero_shot.keep_embeddings(clip, CLASSES, PROMPTS)
    sizes = counted(clip, monkeypatch)
    assert torch.equal(zero_shot.keep_embeddings(clip, CLASSES, PROMPTS), expected)
    assert len(sizes) == 3, "the first block of two classes was there"


@pytest.mark.long
def test_siglip(project, monkeypatch):
    """open_clip's own ViT-B-16-SigLIP with random weights, through a weights file."""
    name = "ViT-B-16-SigLIP"
    made = open_clip.create_model(name).eval()
    save_file({k: v.half().contiguous() for k, v in made.state_dict().items()}, project / "siglip.safetensors")
    try:
        open_clip.get_tokenizer(name)
    except OSError:
        with pytest.raises(UserError, match=f"the tokenizer of {name} could not be loaded"):
            clips.load_clip(named(name, "siglip.safetensors"))
        # CLIP's vocabulary is larger than SigLIP's.
        words = open_clip.SimpleTokenizer(context_length=64)
        monkeypatch.setattr(clips, "_tokenizer", lambda _: lambda texts: words(texts) % 32000)
    loaded = clips.load_clip(named(name, "siglip.safetensors"))
    loaded.model.eval()
    cfg = loaded.preprocessing
    assert (cfg.resize_mode, list(cfg.mean), list(cfg.std)) == ("squash", [0.5] * 3, [0.5] * 3)
    text = zero_shot.keep_embeddings(loaded, CLASSES[:2], PROMPTS)
    module = zero_shot.align(loaded, text).eval()
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    expected = loaded.model.encode_image(module.preprocess(x), normalize=True) @ text.T
    assert torch.allclose(module(x), expected, atol=1e-6)
    assert module(x).abs().max() <= 1 + 1e-6
    assert torch.autograd.grad(module(x)[0, 0], x)[0].abs().sum() > 0
    zero_shot.save_alignment(loaded, named(name, "siglip.safetensors"), None, text, project / "a")
    assert json.loads((project / "a" / "clip.json").read_text())["preprocessing"]["resize_mode"] == "squash"


def test_a_tokenizer_without_its_package(monkeypatch):
    def absent(name):
        raise ImportError("No module named 'transformers'")

    monkeypatch.setattr(open_clip, "get_tokenizer", absent)
    with pytest.raises(UserError, match="run `pip install transformers`"):
        clips._tokenizer("ViT-B-16-SigLIP")


def test_coca_returns_tokens_too():
    made = open_clip.create_model("coca_ViT-B-32").eval()
    clip = clips.Clip(made, open_clip.get_tokenizer("coca_ViT-B-32"), clips.PreprocessCfg())
    text = zero_shot.embed_prompts(clip, CLASSES[:2], PROMPTS[:1])
    module = zero_shot.align(clip, text)
    x = torch.rand(1, 3, 32, 32)
    assert torch.allclose(module(x), made.encode_image(module.preprocess(x), normalize=True) @ text.T, atol=1e-5)


def test_a_clip_from_files_that_names_its_sources(project, clip):
    save_file({k: v.contiguous().clone() for k, v in clip.model.state_dict().items()}, project / "clip.safetensors")
    write_json(project / "clip.json", CONFIG)
    params = ClipFile(source="file", prompts=PROMPTS, config="clip.json", weights="clip.safetensors", antialias=False)
    made = clips.load_clip(params)
    assert not made.antialias
    text = zero_shot.keep_embeddings(made, CLASSES, PROMPTS)
    zero_shot.save_alignment(made, params, None, text, project / "artifacts" / "alignment")
    assert torch.equal(zero_shot.load_alignment().text.cpu(), text)
