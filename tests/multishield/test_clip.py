"""CLIPs of open_clip: names, tags, weights files and hubs; every mistake is one sentence."""

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import hub
from multishield import clip as clips
from multishield.clip import open_clip_model
from multishield.errors import UserError
from multishield.zero_shot import align, align_classes

CLASSES, PROMPTS = ["star", "polar bear", "ring"], ["this is a photo of a {}", "a drawing of a {}"]


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.offline(monkeypatch, tmp_path)


def test_a_clip_from_the_hub_with_its_own_preprocessing(tmp_path):
    weights = hub.put_clip(tmp_path, "UCSC-VLAA/small")
    made = open_clip_model("hf-hub:UCSC-VLAA/small")
    assert all(torch.equal(v, weights[k]) for k, v in made.model.state_dict().items())
    assert list(made.preprocessing.mean) == [0.485, 0.456, 0.406]
    assert made.preprocessing.size in (32, (32, 32))
    assert made.preprocessing.resize_mode == "squash"
    assert align_classes(made, CLASSES, PROMPTS)(torch.rand(2, 3, 40, 40)).shape == (2, 3)


@pytest.mark.parametrize(
    ("model", "pretrained", "words"),
    [
        ("hf-hub:someone/empty", None, "the weights .* of hf-hub:someone/empty could not be loaded"),
        ("hf-hub:someone/else", None, "the weights .* of hf-hub:someone/else could not be loaded"),
        ("hf-hub:someone/empty", "openai", "brings its own weights; give None .*`pretrained: null`"),
        ("ViT-B-23", "openai", r"model \(alignment.model\) is 'ViT-B-23', which open_clip does not know"),
        ("ViT-B-32", "nobody", r"pretrained \(alignment.pretrained\) is 'nobody', .* one of: openai"),
        ("ViT-B-32", None, "one of: openai"),
        ("ViT-B-32", "openai", "write 'ViT-B-32-quickgelu'"),
        ("ViT-L-14", "metaclip_400m", "write 'ViT-L-14-quickgelu'"),
        ("ViT-B-32-quickgelu", "laion400m_e31", "could not be loaded .*without a network give"),
    ],
)
def test_names_and_downloads_that_fail(model, pretrained, words, tmp_path, monkeypatch):
    hub.put_clip(tmp_path, "someone/empty", weights=False)
    # A proxy that nobody listens on: no network. Without sleeps between the hub's five tries of each file.
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=words) as caught:
        open_clip_model(model, pretrained)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ViT-B-32.pt", "b32_400m.pt", "my-own-QuickGELU.safetensors"])
def test_a_weights_file_whose_name_says_quickgelu_needs_it(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="were trained with QuickGELU; write 'ViT-B-32-quickgelu'"):
        open_clip_model("ViT-B-32", str(tmp_path / name))


def test_a_weights_file_with_the_preprocessing_that_its_name_implies(tmp_path):
    made = open_clip.create_model("RN50-quickgelu", pretrained=None)
    torch.save(made.state_dict(), tmp_path / "weights.pt")
    loaded = open_clip_model("RN50-quickgelu", "weights.pt")
    assert torch.equal(loaded.model.visual.conv1.weight, made.visual.conv1.weight)
    assert loaded.saturate
    assert align_classes(loaded, CLASSES, PROMPTS)(torch.rand(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("<html>"),
        lambda path: torch.save({"model": torch.nn.Linear(1, 1)}, path),
        lambda path: torch.save({"visual.conv1.weight": torch.ones(1)}, path),
    ],
)
def test_weights_files_that_are_damaged_or_of_another_model(write, tmp_path):
    write(tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"'weights\.pt' of RN50-quickgelu could not be loaded"):
        open_clip_model("RN50-quickgelu", "weights.pt")


def test_a_tokenizer_without_its_package(monkeypatch):
    def absent(name):
        raise ImportError("No module named 'transformers'")

    monkeypatch.setattr(open_clip, "get_tokenizer", absent)
    with pytest.raises(UserError, match=r"No module named 'transformers'.*`pip install transformers`"):
        clips._tokenizer("ViT-B-16-SigLIP")


@pytest.mark.long
def test_siglip(tmp_path, monkeypatch):
    """open_clip's own ViT-B-16-SigLIP with random weights, through a weights file."""
    name = "ViT-B-16-SigLIP"
    made = open_clip.create_model(name).eval()
    save_file({k: v.half().contiguous() for k, v in made.state_dict().items()}, tmp_path / "siglip.safetensors")
    try:
        open_clip.get_tokenizer(name)
    except OSError:
        with pytest.raises(UserError, match=f"the tokenizer of {name} could not be loaded"):
            open_clip_model(name, "siglip.safetensors")
        words = open_clip.SimpleTokenizer(context_length=64)  # CLIP's vocabulary is larger than SigLIP's
        monkeypatch.setattr(clips, "_tokenizer", lambda _: lambda texts: words(texts) % 32000)
    loaded = open_clip_model(name, "siglip.safetensors")
    config = loaded.preprocessing
    assert (config.resize_mode, list(config.mean), list(config.std)) == ("squash", [0.5] * 3, [0.5] * 3)
    module, x = align_classes(loaded, CLASSES, PROMPTS), torch.rand(1, 3, 64, 64, requires_grad=True)
    expected = loaded.model.encode_image(module.preprocess(x), normalize=True) @ module.text.T
    assert torch.allclose(module(x), expected, atol=1e-6)
    assert torch.autograd.grad(align(loaded, module.text)(x)[0, 0], x)[0].abs().sum() > 0
