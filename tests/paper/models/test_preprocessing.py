"""CLIP's preprocessing against open_clip's own transform for PIL images, on real images; differences are printed."""

import os
from pathlib import Path

import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms.v2 import functional as image_ops

from paper.models.zero_shot import Preprocess

# CLIPs by their published preprocessing: OpenAI's, CLIPA's, SigLIP's.
KINDS = {
    "openai": PreprocessCfg(size=224),
    "clipa": PreprocessCfg(
        size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear", resize_mode="squash"
    ),
    "siglip": PreprocessCfg(size=224, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash"),
}


def pixels_of(image: Image.Image) -> torch.Tensor:
    return image_ops.to_dtype(image_ops.to_image(image), torch.float32, scale=True)[None]


def differences(images: list[Image.Image], config: PreprocessCfg, saturate: bool = True) -> tuple[float, float]:
    """Largest and mean difference between open_clip's transform and ours over all values, in normalised units."""
    theirs, ours = image_transform_v2(config, is_train=False), Preprocess(config, saturate=saturate)
    each = [(ours(pixels_of(image))[0] - theirs(image)).abs() for image in images]
    return max(d.max().item() for d in each), sum(d.mean().item() for d in each) / len(each)


def compare(what: str, images: list[Image.Image], config: PreprocessCfg, largest: float = 1.25) -> None:
    """Print the differences; the largest is below `largest`, the mean below 0.35, both in units of 1/255 pixels.

    PIL rounds to 8 bits after each of its two passes: a mean near 0.3 and a largest of 1 is what rounding alone makes.
    """
    top, mean = differences(images, config)
    # The largest difference of a pixel, at most: channels with a smaller std show a pixel's difference magnified.
    top_255, mean_255 = top * max(config.std) * 255, mean * sum(config.std) / 3 * 255
    print(
        f"{what}, {len(images)} images: largest {top:.4f}, mean {mean:.5f} normalised; "
        f"at most {top_255:.2f}/255, mean {mean_255:.3f}/255"
    )
    assert top_255 < largest
    assert mean_255 < 0.35


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    files = sorted((Path(os.environ["MULTISHIELD_IMAGENET"]) / "val").glob("*/*"))
    assert files
    return [Image.open(f).convert("RGB") for f in files]


@pytest.mark.imagenet
@pytest.mark.parametrize("kind", KINDS)
def test_photographs_as_the_pipeline_has_them(photographs, kind):
    # dataset.image_size 256: shorter side to 256, centre crop; CLIP resizes further to its 224.
    square = [image_ops.center_crop(image_ops.resize(image, 256), [256, 256]) for image in photographs]
    compare(f"{kind}, photographs 256x256 to 224", square, KINDS[kind])


@pytest.mark.imagenet
def test_photographs_at_full_resolution(photographs):
    compare("openai, photographs at full resolution to 224", photographs, KINDS["openai"])
    # Of tall images PIL sometimes squeezes the height first, so that other values are cut off.
    compare("siglip, photographs at full resolution to 224", photographs, KINDS["siglip"], largest=10)


@pytest.mark.imagenet
def test_without_saturation_the_difference_is_larger(photographs):
    config = KINDS["openai"]
    top, mean = differences(photographs, config, saturate=False)
    print(f"openai, without saturation: largest {top:.3f}, mean {mean:.5f} normalised")
    assert top > 5 * differences(photographs, config)[0], "saturation is what makes the two agree"


@pytest.mark.cifar10
@pytest.mark.parametrize("kind", KINDS)
def test_cifar10_enlarged_sevenfold(kind):
    files = sorted((Path(os.environ["MULTISHIELD_CIFAR10"]) / "test").glob("*/*.png"))[:100]
    compare(f"{kind}, CIFAR-10 32x32 to 224", [Image.open(f).convert("RGB") for f in files], KINDS[kind])


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
    config = PreprocessCfg(size=size, resize_mode=mode, fill_color=200)
    compare(f"{mode}, patterns to {size}", patterns(), config)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_white_and_black_areas(kind):
    preprocess = Preprocess(KINDS[kind], saturate=True)
    for value in (0.0, 1.0):
        x = torch.full((1, 3, 60, 60), value, requires_grad=True)
        (gradient,) = torch.autograd.grad(preprocess(x).sum(), x)
        assert (gradient > 0).all()
