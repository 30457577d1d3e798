"""What `evaluate` takes, whatever its form, and what it refuses: one sentence each, before any attack."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from multishield import ConfidenceThreshold, Defence, MultiShield, Undefended, UserError, defences, evaluate
from small import Linear, reject_class

QUICK = {"paper": {"steps": 5}, "joint": {"targets": 1, "steps": 8}, "components": {"targets": 1, "steps": 8}}
QUICK |= {"denial": {"steps": 5}, "square": {"queries": 200}, "sanity": {"images": 2}}
GOOD, LABELS = 0.5 * torch.ones(6, 3, 4, 4), torch.zeros(6, dtype=torch.long)
FAR = GOOD + torch.tensor([0, 0.05, 0, 0.1, 0, 0]).view(-1, 1, 1, 1)


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
    "whole numbers": ({"images": GOOD.long()}, "images are torch.int64; .* divide bytes by 255"),
    "NaN": ({"images": GOOD * torch.nan}, "image 0 has a pixel that is not a finite number"),
    "one image": ({"images": GOOD[0]}, r"images are \(3, 4, 4\) torch.float32; \(N,C,H,W\) or \(N,D\) of at"),
    "no images": ({"images": GOOD[:0]}, "at least one image"),
    "bounds too narrow": ({"bounds": (0, 0.1)}, r"pixels lie in \[0.5, 0.5\]; they must lie in \[0,0.1\]"),
    "bounds that are no range": ({"bounds": (1, 0)}, r"bounds \(1, 0\); Linf with 0 < eps < high - low"),
    "bounds without end": ({"bounds": (0, torch.inf)}, r"bounds \(0, inf\)"),
    "labels that are missing": ({"labels": None}, "labels are NoneType; 6 whole numbers"),
    "data without labels": ({"images": TensorDataset(GOOD), "labels": None}, "TensorDataset that cannot be read"),
    "no labels": ({"labels": LABELS[:3]}, "6 whole numbers are accepted, one each"),
    "labels that are no numbers": ({"labels": LABELS.float()}, "whole numbers"),
    "a label too large": ({"labels": LABELS + 3}, r"labels lie in 3..3, but the model has 3 classes; give 0..2"),
    "a negative label": ({"labels": LABELS - 1}, r"labels lie in -1..-1"),
    "eps in 0..255": ({"eps": 8}, r"eps is 8, norm 'Linf', bounds \(0, 1\); Linf with 0 < eps < high - low"),
    "no eps": ({"eps": 0.0}, "eps is 0"),
    "no draws": ({"draws": 0}, "draws is 0; give a whole number of at least 1"),
    "half a batch": ({"batch_size": 0.5}, "batch_size is 0.5; give a whole number"),
    "a candidate without a name": ({"candidates": {"": GOOD}}, "named ''; give each source a name"),
    "too few candidates": ({"candidates": {"a": GOOD[:2]}}, r"'a' are \(2, 3, 4, 4\); give one per clean"),
    "far candidates": (
        {"candidates": {"a": FAR}},
        r"image 3 of the candidates 'a', the farthest, is 0.100000 away \(eps",
    ),
    "another norm": ({"norm": "L1"}, "norm is 'L1'"),
    "an unknown attack": ({"attacks": ["apgd"]}, r"attacks are \['apgd'\]; some of components, paper, joint"),
    "no attack that counts": ({"attacks": ["denial"]}, "joint or square among them"),
    "no model": ({"model": lambda x: x}, "the model is function; a torch.nn.Module or a defence is accepted"),
    "a tuple": ({"model": reject_class(lambda out: (out, out))}, r"the model gives tuple; outputs \(B,K\+1\)"),
    "two outputs": ({"model": reject_class(lambda out: out[:, :2])}, r"the model gives \(4, 2\) .*; outputs"),
    "classes": ({"model": reject_class(lambda out: out.argmax(1))}, r"the model gives \(4,\) torch.int64"),
    "NaN in scores": ({"model": reject_class(lambda out: out * torch.nan)}, "network gives image 0 .* are not finite"),
    "a random model": ({"model": reject_class(lambda out: out + torch.rand_like(out))}, "when asked again: .*draws=20"),
    "a classifier as it is": ({"model": Linear(3)}, r"a Linear, and nothing says .*; give RejectClass\(model\)"),
    "a network as it is": ({"model": nn.Conv2d(1, 1, 1)}, r"a Conv2d, and nothing says"),
    "two accepted classes": ({"model": Logits()}, "accepts two classes of one image"),
    "two of a random model": ({"model": Logits(), "draws": 2}, "accepts two classes of one image"),
    "ids that repeat": ({"ids": [0, 1, 2, 3, 4, 4]}, "two images have the same id"),
    "ids as texts": ({"ids": [*"abcdef"]}, "ids are list; 6 whole numbers are accepted"),
    "eps in words": ({"eps": "8 of 255"}, 'must be a fraction such as "8/255" or a number'),
    "an unknown budget": ({"budget": {"steps": 3}}, "budget or device cannot be used: .*unexpected keyword .*steps"),
    "a device that is not here": ({"device": "xla"}, "device cannot be used: "),
    "a file for results": ({"save_to": __file__}, "which is no folder to write to .*; give one"),
    "a home that nobody has": ({"save_to": "~nobody-here/out"}, "which is no folder to write to .*; give one"),
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


BYTES = torch.randint(30, 220, (12, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CLASSES = Linear(3)(BYTES / 255).argmax(1)
FORMS = {
    "bytes": {"images": BYTES},
    "an array": {"images": BYTES.numpy() / 255, "labels": CLASSES.numpy().astype(np.uint8)},
    "a view of an array": {"images": BYTES.numpy()[::-1].copy()[::-1], "labels": CLASSES.tolist()},
    "doubles": {"images": BYTES.double() / 255, "labels": CLASSES[:, None].short(), "norm": "LINF", "eps": "8/255"},
    "a data set": {"images": TensorDataset(BYTES / 255, CLASSES), "labels": None},
    "a loader": {"images": DataLoader(TensorDataset(BYTES, CLASSES), batch_size=5), "labels": None, "batch_size": 5},
    "a symmetric range": {"images": BYTES, "bounds": (-1, 1), "eps": 16 / 255, "scale": 2},
    "another range": {"images": BYTES.float(), "bounds": (0, 255), "eps": 8, "scale": 255},
}


@pytest.mark.parametrize("form", FORMS)
def test_images_in_any_form_give_the_same_result(form, capsys):
    def run(images=BYTES / 255, labels=CLASSES, eps=8 / 255, scale=1, **options):
        low = options.get("bounds", (0, 1))[0]
        model = Linear(3)
        model.register_forward_pre_hook(lambda module, given: ((given[0] - low) / scale,))
        options |= {"attacks": ["joint"], "budget": QUICK, "verbose": False}
        return evaluate(ConfidenceThreshold(model, 0.3), images, labels, eps, **options)

    expected, result = run(), run(**FORMS[form])
    columns = ["scenario", "image", "label", "clean_decision", "attacked_decision"]
    assert result.records[columns].equals(expected.records[columns])
    assert 0 < result.robust_accuracy == expected.robust_accuracy < 1
    scale = FORMS[form].get("scale", 1)
    assert np.allclose(result.records.distance / scale, expected.records.distance, atol=1e-5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("attacks", [["components", "joint", "square"], ["square"]])
@pytest.mark.parametrize(("norm", "dual", "eps"), [("Linf", 1, 8 / 255), ("L2", 2, 0.3)])
@pytest.mark.parametrize("shape", [(1, 6, 6), (13, 3, 3), (3, 2, 7), (40,)])
def test_images_of_any_shape_have_the_closed_form_of_two_classes(shape, norm, dual, eps, attacks):
    x = 0.3 + 0.4 * torch.rand(60, *shape)  # an L2 ball of 0.3 lies inside [0,1], too
    model = Linear(2, x[0].numel())
    z, slope = model(x), (model.weight[0] - model.weight[1]).norm(dual)
    distance = (z[:, 0] - z[:, 1]).abs() / slope
    options = {"norm": norm, "attacks": attacks, "budget": QUICK, "verbose": False}
    broken = evaluate(Undefended(model), x, z.argmax(1), eps, **options).attacked["worst_case"][:].success
    assert not (broken & (distance > 1.001 * eps)).any()
    share, possible = (0.5 if attacks == ["square"] else 0.97), distance < 0.98 * eps
    assert (broken & possible).sum() >= share * possible.sum() > 10


TWO, OTHER = Linear(2, seed=1), Linear(2, 48, 0.02, seed=2)
DEFENCES = [Undefended(TWO), ConfidenceThreshold(TWO, 0.1), ConfidenceThreshold(TWO, 0.6, of="probability")]
DEFENCES += [MultiShield(TWO, OTHER), defences.Unanimity([TWO, OTHER]), defences.FeatureSqueezing(TWO)]
DEFENCES += [defences.ConsistentPrediction(TWO), defences.SummedLogProbabilities(TWO, OTHER, 10.0, 0.1)]


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: type(defence).__name__)
def test_two_classes_are_enough_for_every_defence(defence):
    x = 0.2 + 0.6 * torch.rand(6, 3, 4, 4)
    result = evaluate(defence, x, TWO(x).argmax(1), 8 / 255, budget=QUICK, verbose=False)
    assert set(result.records.classes) == {2}
    assert torch.equal(defence(x).argmax(1), torch.tensor(result.records.clean_decision[:6].to_numpy()))


def test_candidates_from_elsewhere_count_in_the_worst_case_by_their_names():
    x, model = 0.2 + 0.6 * torch.rand(40, 3, 4, 4), Linear(2, seed=1)
    z, eps = model(x), 8 / 255
    towards = (model.weight[1] - model.weight[0]).sign().view(3, 4, 4)
    best = x + eps * torch.where((z.argmax(1) == 0).view(-1, 1, 1, 1), towards, -towards)
    possible = (z[:, 0] - z[:, 1]).abs() < model.reach(eps)[0, 1]
    options = {"attacks": ["square"], "budget": {"square": {"queries": 1}}, "verbose": False}
    candidates = {"clean again": x.numpy(), "best": best}
    result = evaluate(Undefended(model), x, z.argmax(1), eps, candidates=candidates, **options)
    counts = {"from best": int(possible.sum()), "": int((~possible).sum())}
    assert result.records.attack.value_counts().to_dict() == counts
    assert 0 < result.robust_accuracy == 1 - possible.double().mean() < 1
