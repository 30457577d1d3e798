"""The alignment: open_clip's own preprocessing and text tower are the reference."""

import copy

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from torchvision.transforms.v2.functional import to_pil_image

from multishield.errors import UserError
from multishield.files import write_json
from paper.models import clip as clips
from paper.models import zero_shot
from paper.params import ClipFile, ClipOpen
from paper.training.clip import small_config

PROMPTS = ["this is a photo of a {}"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    made = clips.build_clip(small_config("test_resnet", 32), antialias=True)
    made.model.eval()
    return made


@pytest.mark.parametrize("side", [32, 100, 300])
@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_preprocessing_agrees_with_open_clips_transform(side, mode):
    config = PreprocessCfg(size=64, resize_mode=mode)
    # Mid-range noise: PIL clips what overshoots [0,255], between its two passes too; inside the range the two agree.
    pixels = torch.randint(80, 176, (3, side, side + 20 * (mode == "shortest")), dtype=torch.uint8)
    theirs = image_transform_v2(config, is_train=False)(to_pil_image(pixels))
    ours = zero_shot.Preprocess(config)(pixels[None].float() / 255)[0]
    # PIL rounds to 8 bits after each of its two passes.
    assert (ours - theirs).abs().max() < 2 / 255 / min(config.std)


def test_cosines_are_open_clips(clip):
    classes = ["star", "polar bear", "ring"]
    text = zero_shot.embed_prompts(clip, classes, PROMPTS)
    assert torch.allclose(text.norm(dim=1), torch.ones(3), atol=1e-6), "per class, not over classes"
    tokens = open_clip.SimpleTokenizer(context_length=16)([PROMPTS[0].format(c) for c in classes])
    assert torch.allclose(text, clip.model.encode_text(tokens, normalize=True), atol=1e-6)
    preprocess = zero_shot.Preprocess(clip.preprocessing)
    module = zero_shot.ZeroShotClassifier(clip.model.visual, preprocess, text)
    x = torch.rand(4, 3, 32, 32)
    expected = clip.model.encode_image(preprocess(x), normalize=True) @ text.T
    assert torch.allclose(module(x), expected, atol=1e-6)
    assert module(x).abs().max() <= 1 + 1e-6


def test_an_ensemble_is_the_normalised_mean_of_normalised_embeddings(clip):
    prompts = ["a photo of a {}", "a drawing of a {}"]
    rows = [zero_shot.embed_prompts(clip, ["star"], [p])[0] for p in prompts]
    mean = (rows[0] + rows[1]) / 2
    assert torch.allclose(zero_shot.embed_prompts(clip, ["star"], prompts)[0], mean / mean.norm(), atol=1e-6)


def test_gradients_reach_the_pixels(clip):
    text = zero_shot.embed_prompts(clip, ["star", "ring"], PROMPTS)
    tower = copy.deepcopy(clip.model.visual)
    module = zero_shot.ZeroShotClassifier(tower, zero_shot.Preprocess(clip.preprocessing), text).double()
    x = torch.rand(1, 3, 32, 32, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[0, 0], x)
    direction = torch.randn_like(x)
    step = 1e-6
    numeric = (module(x + step * direction)[0, 0] - module(x - step * direction)[0, 0]) / (2 * step)
    assert numeric.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-3)


def test_text_embeddings_must_be_normalised_per_class(clip):
    with pytest.raises(ValueError, match="per class"):
        zero_shot.ZeroShotClassifier(clip.model.visual, torch.nn.Identity(), torch.ones(3, 128))


def files(tmp_path, clip, config):
    save_file({k: v.contiguous().clone() for k, v in clip.model.state_dict().items()}, tmp_path / "clip.safetensors")
    write_json(tmp_path / "clip.json", config)
    return ClipFile(
        source="file", prompts=PROMPTS, config=str(tmp_path / "clip.json"), weights=str(tmp_path / "clip.safetensors")
    )


def test_a_clip_from_files(project_root, clip):
    back = clips.read_clip(files(project_root, clip, {**small_config("test_resnet", 32), "note": "ignored"}))
    x = torch.rand(1, 3, 64, 64)
    # Not bit for bit: the fixture's tower may be in another memory layout by now.
    assert torch.allclose(back.model.eval().encode_image(x), clip.model.encode_image(x), atol=1e-5)
    other = files(project_root, clip, {**small_config("test_resnet", 32), "embed_dim": 64})
    with pytest.raises(UserError, match="has shape"):
        clips.read_clip(other)
    with pytest.raises(UserError, match="not a CLIP configuration"):
        clips.read_clip(files(project_root, clip, {"embed_dim": 3}))
    (project_root / "clip.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        clips.read_clip(other)


def test_open_clip_by_name_from_a_weights_file(project_root):
    torch.manual_seed(1)
    made = open_clip.create_model("RN50-quickgelu", pretrained=None)
    path = project_root / "weights.pt"
    torch.save(made.state_dict(), path)
    params = ClipOpen(source="open_clip", prompts=PROMPTS, model="RN50-quickgelu", pretrained=str(path))
    loaded = clips.open_named_clip(params)
    assert torch.equal(loaded.model.visual.conv1.weight, made.visual.conv1.weight)
    text = zero_shot.embed_prompts(loaded, ["cat", "dog"], PROMPTS)
    module = zero_shot.ZeroShotClassifier(loaded.model.visual.eval(), zero_shot.Preprocess(loaded.preprocessing), text)
    assert module(torch.rand(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize(
    ("model", "pretrained", "words"),
    [
        ("ViT-Z", "openai", "does not know"),
        ("ViT-B-32", "nobody", "one of: openai"),
        ("ViT-B-32", None, "one of: openai"),
        ("ViT-B-32-quickgelu", "laion400m_e31", "could not be loaded .*without a network give"),
    ],
)
def test_open_clip_names_and_downloads_that_fail(model, pretrained, words, monkeypatch):
    # A proxy that nobody listens on: no network. Without sleeps between the hub's five tries of each file.
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=words):
        clips.open_named_clip(ClipOpen(source="open_clip", prompts=PROMPTS, model=model, pretrained=pretrained))


def test_a_prompt_that_is_cut_off_is_refused(clip):
    long = "this is a very long description of what can be seen on the photo, namely one {}"
    with pytest.raises(UserError, match="the class 'star' is longer than the 16 tokens that this CLIP reads"):
        zero_shot.embed_prompts(clip, ["star", "ring"], [long])
    name = "northern giant pouched rat of the eastern islands and of one more"  # it alone is cut
    with pytest.raises(UserError, match="longer than the 16 tokens"):
        zero_shot.embed_prompts(clip, ["star", name], PROMPTS)
    fits = "one two three four five six seven eight nine ten eleven twelve thirteen {}"
    zero_shot.embed_prompts(clip, ["star", "ring"], [fits])  # 14 words and two marks are 16 tokens


def test_names_that_are_the_same_tokens_are_refused(clip):
    with pytest.raises(UserError, match=r"the same tokens for the classes .* which CLIP cannot tell apart"):
        zero_shot.embed_prompts(clip, ["caf\u00e9", "cafe\u0301"], PROMPTS)


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
def test_a_configuration_that_nothing_can_be_done_with_is_refused(changes, words):
    config = small_config("test_resnet", 32)
    with pytest.raises(UserError, match=words):
        clips.build_clip(config | {"preprocess_cfg": config["preprocess_cfg"] | changes}, antialias=True)
    with pytest.raises(UserError, match="is not a CLIP configuration"):
        clips.build_clip({"embed_dim": 8, "vision_cfg": "x", "text_cfg": []}, antialias=True)
