"""One forward pass: the bits of an image in any batch, finite scores, and answers that do not change."""

import open_clip
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from multishield import Ball, Images, MultiShield, UserError, pgd
from multishield.forward import FILL, accuracy, check_repeatable, forward, freeze
from multishield.records import decide
from paper.models.cifar_resnet import build_network
from paper.models.classifier import Classifier
from small import Linear

X = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def test_small_batches_are_filled_up():
    sizes = []

    def model(x):
        sizes.append(len(x))
        return x, -x

    for n in (1, 3, 20):
        assert all(torch.equal(*pair) for pair in zip(forward(model, X[:n]), (X[:n], -X[:n]), strict=True))
    assert sizes == [FILL, FILL, 2 * FILL]


def network_of(name):
    """A network, and the side of its images. Of a transformer the first block: the others are the same."""
    if name == "resnet20":
        return build_network("resnet20", 10), 32
    if name == "torchvision":
        return torchvision.models.resnet18(), 224
    config, side = open_clip.get_model_config(name), 112 if name == "ViT-L-14" else 224
    vision = config["vision_cfg"] | {"layers": 1, "image_size": side}
    return open_clip.CLIP(config["embed_dim"], vision, config["text_cfg"]).visual, side


# With the portable arithmetic, which tests run with. Native, ViT-L/14 was seen to differ on an Intel with AVX-512.
@pytest.mark.parametrize("name", ["resnet20", "torchvision", "ViT-B-32", "ViT-L-14"])
def test_an_image_has_the_same_bits_in_a_batch_of_any_size(name):
    network, side = network_of(name)
    model, x = freeze(Classifier(network, [0.5] * 3, [0.25] * 3)), torch.rand(22, 3, side, side)

    def both(some):
        some = some.clone().requires_grad_()
        out = forward(model, some)
        return out.detach(), torch.autograd.grad(out.square().sum(), some)[0]

    whole = both(x)
    for size in (1, 3, 6, 12, 17) if name == "resnet20" else (1, 6, 17):
        for ours, expected in zip(both(x[5 : 5 + size]), whole, strict=True):
            assert torch.equal(ours, expected[5 : 5 + size]), size


def test_accuracy_is_the_share_of_right_decisions():
    labels = Linear()(X).argmax(1)
    labels[:5] = (labels[:5] + 1) % 4
    data = Images(X, labels, torch.arange(20))
    assert accuracy(Linear(), data, batch_size=8) == 0.75
    assert accuracy(Linear(), data[:0]) != accuracy(Linear(), data[:0]), "NaN without images"


RANDOM = {
    "noise": Linear(then=lambda z: z + 0.1 * torch.randn_like(z)),
    "dropout": Linear(then=lambda z: F.dropout(z, 0.1)),
    "the batch": Linear(then=lambda z: z - z.mean(0)),
    "the neighbour": Linear(then=lambda z: z + 0.1 * z.roll(1, 0)),
    "noise in CLIP": MultiShield(Linear(), Linear(then=lambda z: z + 0.1 * torch.randn_like(z))),
}


@pytest.mark.parametrize("model", RANDOM.values(), ids=RANDOM)
def test_answers_that_change_are_an_error_that_names_the_image(model):
    check_repeatable(nn.Sequential(nn.BatchNorm2d(3), Linear()), X, "asked in evaluation mode")
    with pytest.raises(UserError, match=r"the model answers differently when asked again: the scores of image \d+"):
        check_repeatable(model, X, "the model")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_never_counted(value):
    poisoned = Linear(then=lambda z: z.masked_fill(torch.arange(len(z)).view(-1, 1) == 3, value))
    with pytest.raises(UserError, match=r"the classifier gives image 3 of a batch of 20 the scores .* not finite"):
        decide(poisoned, X)
    with pytest.raises(UserError, match="CLIP gives image 3 of a batch of 20"):
        decide(MultiShield(Linear(), poisoned), X)
    with pytest.raises(UserError, match="not finite"):
        pgd(poisoned, X, torch.zeros(20).long(), ball=Ball(0.1), seed=0, ids=torch.arange(20))
