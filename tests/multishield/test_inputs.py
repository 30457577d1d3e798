"""Images, models and options that `evaluate` refuses: one sentence each, before any attack."""

import pytest
import torch
from torch import nn

from multishield import ConfidenceThreshold, Defence, Undefended, UserError, evaluate
from small import Linear, reject_class

GOOD, LABELS = 0.5 * torch.ones(6, 3, 4, 4), torch.zeros(6, dtype=torch.long)


class Disagreeing(Undefended):
    def outputs(self, scores):
        return super().outputs(scores)[:, 1:]


class Logits(Defence):
    """Its margins are raw logits, so that several classes are accepted."""

    def __init__(self):
        super().__init__()
        self.model = Linear(3)

    def scores(self, x):
        return (self.model(x),)

    def margins(self, scores):
        return 1 + scores[0].unsqueeze(1).abs()


REFUSED = {
    "pixels of 0..255": ({"images": 255 * GOOD}, r"pixels lie in \[128, 128\]; they must lie in \[0,1\]"),
    "whole numbers": ({"images": GOOD.long()}, r"images are torch.int64; pixels are float32 in \[0,1\], or uint8"),
    "NaN": ({"images": GOOD * torch.nan}, "image 0 has a pixel that is not a finite number"),
    "grey images": ({"images": GOOD[:, :1]}, r"images are \(6, 1, 4, 4\) torch.float32; a tensor \(N,3,H,W\)"),
    "no images": ({"images": GOOD[:0]}, "at least one RGB image"),
    "no labels": ({"labels": LABELS[:3]}, "6 whole numbers are accepted, one each"),
    "labels that are no numbers": ({"labels": LABELS.float()}, "whole numbers"),
    "a label too large": ({"labels": LABELS + 3}, r"labels lie in 3..3, but the model has 3 classes; give 0..2"),
    "a negative label": ({"labels": LABELS - 1}, r"labels lie in -1..-1"),
    "eps in 0..255": ({"eps": 8}, r"norm is 'Linf' and eps 8; Linf with 0 < eps < 1, such as 8/255"),
    "no eps": ({"eps": 0.0}, "eps 0"),
    "another norm": ({"norm": "L1"}, "norm is 'L1'"),
    "an unknown attack": ({"attacks": ["apgd"]}, r"attacks are \['apgd'\]; some of components, paper, joint"),
    "no attack that counts": ({"attacks": ["denial"]}, "joint or square among them"),
    "no model": ({"model": lambda x: x}, "the model is function; a torch.nn.Module or a defence is accepted"),
    "a tuple": ({"model": reject_class(lambda out: (out, out))}, r"the model gives tuple; outputs \(B,K\+1\)"),
    "two outputs": ({"model": reject_class(lambda out: out[:, :2])}, r"the model gives \(4, 2\) .*; outputs"),
    "classes": ({"model": reject_class(lambda out: out.argmax(1))}, r"the model gives \(4,\) torch.int64"),
    "NaN in scores": ({"model": reject_class(lambda out: out * torch.nan)}, "network gives image 0 .* are not finite"),
    "a random model": ({"model": reject_class(lambda out: out + torch.rand_like(out))}, "differently when asked again"),
    "a classifier as it is": ({"model": Linear(3)}, r"a Linear, and nothing says .*; give RejectClass\(model\)"),
    "a network as it is": ({"model": nn.Conv2d(1, 1, 1)}, r"a Conv2d, and nothing says"),
    "two accepted classes": ({"model": Logits()}, "accepts two classes of one image"),
    "ids that repeat": ({"ids": [0, 1, 2, 3, 4, 4]}, "two images have the same id"),
    "ids as texts": ({"ids": [*"abcdef"]}, "ids are list; 6 whole numbers are accepted"),
    "eps in words": ({"eps": "8 of 255"}, 'must be a fraction such as "8/255" or a number'),
    "an unknown budget": ({"budget": {"steps": 3}}, "budget or device cannot be used: .*unexpected keyword .*steps"),
    "a device that is not here": ({"device": "xla"}, "device cannot be used: "),
    "a file for results": ({"save_to": __file__}, "which is no folder to write to .*; give one"),
    "a model that fails": ({"model": Undefended(nn.Conv2d(1, 1, 1))}, r"the model fails on images \(4, 3, 4, 4\): "),
    "other classes": ({"model": Disagreeing(Linear(3))}, r"margins \(4, 1, 3\) and outputs \(4, 3\); .* same number"),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_argument_is_one_sentence(change, words):
    given = {"model": reject_class(), "images": GOOD, "labels": LABELS, "eps": 8 / 255} | change
    with pytest.raises(UserError, match=words) as error:
        evaluate(**given)
    assert "\n" not in str(error.value)


def test_a_margin_that_is_no_number_is_refused():
    defence = ConfidenceThreshold(Linear(3), 0.5)
    defence.threshold = torch.nan
    with pytest.raises(UserError, match="a margin that is not a finite number; look for a division by zero"):
        evaluate(defence, GOOD, LABELS)
