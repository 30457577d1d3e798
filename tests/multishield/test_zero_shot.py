"""The zero-shot classifier against open_clip: its preprocessing, its cosines, and the prompts that are refused."""

import copy
import os
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, center_crop_or_pad, image_transform_v2
from PIL import Image
from torchvision.transforms.v2 import functional as image_ops

from hub import small_clip
from multishield import zero_shot
from multishield.errors import UserError
from multishield.zero_shot import Clip, Preprocess

PROMPTS = ["this is a photo of a {}"]
# CLIPs by their published preprocessing: OpenAI's, CLIPA's, SigLIP's.
KINDS = {
    "openai": PreprocessCfg(size=224),
    "clipa": PreprocessCfg(
        size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear", resize_mode="squash"
    ),
    "siglip": PreprocessCfg(size=224, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash"),
}


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    config = PreprocessCfg(size=32, mean=(0.5,) * 3, std=(0.25,) * 3, resize_mode="squash")
    return Clip(small_clip(), open_clip.SimpleTokenizer(context_length=16), config)


def test_cosines_are_open_clips(clip):
    classes = ["star", "polar bear", "ring"]
    text = zero_shot.embed_prompts(clip, classes, PROMPTS)
    assert torch.allclose(text.norm(dim=1), torch.ones(3), atol=1e-6), "per class, not over classes"
    tokens = open_clip.SimpleTokenizer(context_length=16)([PROMPTS[0].format(c) for c in classes])
    assert torch.allclose(text, clip.model.encode_text(tokens, normalize=True), atol=1e-6)
    module, x = zero_shot.align_classes(clip, classes, PROMPTS), torch.rand(4, 3, 32, 32)
    expected = clip.model.encode_image(module.preprocess(x), normalize=True) @ text.T
    assert torch.allclose(module(x), expected, atol=1e-6)


NAMES = ["star", "ring"]


def test_an_ensemble_is_the_normalised_mean_of_normalised_embeddings(clip):
    prompts = ["a photo of a {}", "a drawing of a {}"]
    mean = torch.stack([zero_shot.embed_prompts(clip, NAMES, [p])[0] for p in prompts]).mean(0)
    assert torch.allclose(zero_shot.embed_prompts(clip, NAMES, prompts)[0], mean / mean.norm(), atol=1e-6)
    functions = [lambda name: f"a photo of a {name}", "a drawing of a {}"]
    assert torch.equal(zero_shot.embed_prompts(clip, NAMES, functions), zero_shot.embed_prompts(clip, NAMES, prompts))
    with pytest.raises(ValueError, match="per class"):
        zero_shot.align(clip, torch.ones(3, 48))


@pytest.mark.parametrize(
    ("classes", "prompts", "words"),
    [
        ({0: "star", 1: "ring"}, PROMPTS, r"the classes are \{0: 'star', 1: 'ring'\}; a list of at"),
        ("star", PROMPTS, "the classes are star; a list"),
        (["star", "star"], PROMPTS, "two different names"),
        ([0, 1], PROMPTS, r"the classes are \[0, 1\]"),
        (["star", " "], PROMPTS, "two different names"),
        (NAMES, "a photo of a {}", "the prompts are a photo of a {}; a list of texts with one {} each"),
        (NAMES, ["a photo"], "one {} each"),
        (NAMES, [], r"the prompts are \[\]"),
    ],
)
def test_names_and_prompts_of_another_form_are_refused(clip, classes, prompts, words):
    with pytest.raises(UserError, match=words):
        zero_shot.align_classes(clip, classes, prompts)


def test_gradients_reach_the_pixels(clip):
    text = zero_shot.embed_prompts(clip, ["star", "ring"], PROMPTS)
    module = zero_shot.align(copy.deepcopy(clip), text).double()
    x = torch.rand(1, 3, 32, 32, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[0, 0], x)
    direction, step = torch.randn_like(x), 1e-6
    numeric = (module(x + step * direction)[0, 0] - module(x - step * direction)[0, 0]) / (2 * step)
    assert numeric.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-3)


LONG = "this is a very long description of what can be seen on the photo, namely one {}"
RAT = "northern giant pouched rat of the eastern islands and of one more"


@pytest.mark.parametrize(
    ("classes", "prompt", "words"),
    [
        (["star", "ring"], LONG, "the class 'star' is longer than the 16 tokens that this CLIP reads"),
        (["star", RAT], PROMPTS[0], "longer than the 16 tokens"),
        (["caf\u00e9", "cafe\u0301"], PROMPTS[0], r"the same tokens for the classes .* which CLIP cannot tell apart"),
    ],
)
def test_prompts_that_are_cut_off_or_confused_are_refused(clip, classes, prompt, words):
    with pytest.raises(UserError, match=words):
        zero_shot.embed_prompts(clip, classes, [prompt])
    fits = "one two three four five six seven eight nine ten eleven twelve thirteen {}"
    assert len(zero_shot.embed_prompts(clip, ["star", "ring"], [fits])) == 2  # 14 words and two marks are 16 tokens


def test_coca_returns_tokens_too():
    made = open_clip.create_model("coca_ViT-B-32").eval()
    clip = Clip(made, open_clip.get_tokenizer("coca_ViT-B-32"), PreprocessCfg())
    module, x = zero_shot.align_classes(clip, ["star", "ring"], PROMPTS), torch.rand(1, 3, 32, 32)
    expected = made.encode_image(module.preprocess(x), normalize=True) @ module.text.T
    assert torch.allclose(module(x), expected, atol=1e-5)


def test_crops_and_pads_are_open_clips():
    x = torch.rand(1, 3, 8, 9)
    for size in [(height, width) for height in range(5, 13) for width in range(5, 13)]:
        assert torch.equal(zero_shot.center_crop_or_pad(x, size, 0.7), center_crop_or_pad(x, size, 0.7)), size


def differences(images: list[Image.Image], config: PreprocessCfg, saturate: bool = True) -> tuple[float, float]:
    """Largest and mean difference to open_clip's transform, at most, in units of 1/255 pixels."""
    theirs, ours = image_transform_v2(config, is_train=False), Preprocess(config, saturate=saturate)
    pixels = [image_ops.to_dtype(image_ops.to_image(image), torch.float32, scale=True)[None] for image in images]
    each = [(ours(x)[0] - theirs(image)).abs() for x, image in zip(pixels, images, strict=True)]
    mean = sum(d.mean().item() for d in each) / len(each)
    return max(d.max().item() for d in each) * max(config.std) * 255, mean * sum(config.std) / 3 * 255


def compare(name: str, images: list[Image.Image], config: PreprocessCfg, largest: float = 1.25) -> None:
    """Print the differences and check them. PIL rounds after each of its two passes, which makes a mean near 0.3."""
    top, mean = differences(images, config)
    print(f"{name}, {len(images)} images: at most {top:.2f}/255, mean {mean:.3f}/255")
    assert top < largest
    assert mean < 0.35


@pytest.mark.parametrize("side", [32, 100, 300])
@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_preprocessing_agrees_with_open_clips_transform(side, mode):
    # Mid-range noise: PIL clips what overshoots [0,255], between its two passes too; inside the range the two agree.
    pixels = torch.randint(80, 176, (3, side, side + 20 * (mode == "shortest")), dtype=torch.uint8)
    config = PreprocessCfg(size=64, resize_mode=mode)
    top, _ = differences([image_ops.to_pil_image(pixels)], config, saturate=False)
    assert top < 2 * max(config.std) / min(config.std)


def patterns() -> list[Image.Image]:
    """High contrast, wide and tall: smooth ramps with hard black and white edges."""
    images = []
    for height, width in ((70, 100), (120, 64), (64, 64)):
        ramp = torch.linspace(0, 255, width).expand(3, height, width).clone()
        ramp[:, height // 3 : height // 2] = 255
        ramp[:, :, width // 3 : width // 2] = 0
        images.append(image_ops.to_pil_image(ramp.to(torch.uint8)))
    return images


@pytest.mark.parametrize("mode", ["shortest", "longest"])
@pytest.mark.parametrize("size", [48, (48, 40), (40, 64), 90])
def test_resize_modes_without_squashing(mode, size):
    compare(f"{mode}, patterns to {size}", patterns(), PreprocessCfg(size=size, resize_mode=mode, fill_color=200))


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_white_and_black_areas(kind, value):
    x = torch.full((1, 3, 60, 60), value, requires_grad=True)
    (gradient,) = torch.autograd.grad(Preprocess(KINDS[kind], saturate=True)(x).sum(), x)
    assert (gradient > 0).all()


def images_in(variable: str, pattern: str) -> list[Image.Image]:
    files = sorted(Path(os.environ[variable]).glob(pattern))
    assert files
    return [Image.open(f).convert("RGB") for f in files[:100]]


@pytest.mark.imagenet
def test_photographs_in_full_and_as_the_pipeline_has_them():
    photographs = images_in("MULTISHIELD_IMAGENET", "val/*/*")
    # dataset.image_size 256: shorter side to 256, centre crop; CLIP resizes further to its 224.
    square = [image_ops.center_crop(image_ops.resize(image, 256), [256, 256]) for image in photographs]
    for kind, config in KINDS.items():
        compare(f"{kind}, photographs 256x256 to 224", square, config)
    compare("openai, photographs at full resolution to 224", photographs, KINDS["openai"])
    # Of tall images PIL sometimes squeezes the height first, so that other values are cut off.
    compare("siglip, photographs at full resolution to 224", photographs, KINDS["siglip"], largest=10)
    without, _ = differences(photographs, KINDS["openai"], saturate=False)
    assert without > 5 * differences(photographs, KINDS["openai"])[0], "saturation is what makes the two agree"


@pytest.mark.cifar10
@pytest.mark.parametrize("kind", KINDS)
def test_cifar10_enlarged_sevenfold(kind):
    compare(f"{kind}, CIFAR-10 32x32 to 224", images_in("MULTISHIELD_CIFAR10", "test/*/*.png"), KINDS[kind])
