"""`evaluate`, from outside: known answers, the same answer from every call, and a killed call."""

from contextlib import nullcontext
from threading import Lock
from unittest.mock import Mock

import pandas as pd
import pytest
import torch

from multishield import Ball, Budget, ConfidenceThreshold, Defence, MultiShield, Undefended, UserError, evaluate
from multishield import images as images_module
from multishield.attacks.components import one_margin
from multishield.budget import Components, Denial, Joint, Paper, Sanity, Square
from multishield.defences import calibrate
from multishield.evaluation import ATTACKS
from multishield.portfolio import ALPHAS, Attacker
from multishield.shield import margin_over_others
from small import InPlace, Linear, inside, reject_class

EPS = 8 / 255
QUICK = Budget(Paper(20), Joint(2, 20), Components(2, 20), Denial(20), Square(20), Sanity(10))


def labels_of(model, x):
    return model(x)[:, :3].argmax(1)


@pytest.fixture(scope="module")
def whole():
    """A model, images, labels, and the result of an undisturbed call."""
    torch.manual_seed(0)
    model, x = reject_class(), inside(20)
    y = labels_of(model, x)
    return model, x, y, evaluate(model, x, y, EPS, budget=QUICK)


def same(one, other):
    for name in ("records", "runs", "findings", "curve", "passes"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
    assert list(one.attacked) == list(other.attacked)
    for attack, stored in other.attacked.items():
        assert torch.equal(one.attacked[attack][:].images, stored[:].images)


def test_the_threshold_of_a_linear_model_has_a_closed_form():
    model, x = Linear(3), inside(60)
    z = model(x)
    y, threshold = z.argmax(1), float(z.topk(2).values.diff(dim=1).abs().quantile(0.2))
    # Class t is accepted somewhere in the ball if for all j: z_t - z_j + eps * |w_t - w_j|_1 >= threshold, nearly: with
    # three classes the two conditions share one image, so it is necessary; the attack must claim nothing beyond it.
    possible = z[:, :, None] - z[:, None] + model.reach(EPS) >= threshold
    possible = (possible | torch.eye(3, dtype=torch.bool)).all(2).scatter(1, y[:, None], False).any(1)
    result = evaluate(ConfidenceThreshold(model, threshold), x, y, EPS, budget=QUICK)
    broken = result.attacked["worst_case"][:].success
    assert not (broken & ~possible).any()
    assert broken.sum() >= 0.9 * possible.sum() > 3
    metrics = result.metrics.set_index(["scenario", "metric"]).value["worst_case"]
    assert metrics["clean_rejection"] == pytest.approx(0.2, abs=0.02)
    assert metrics["robust_accuracy"] == pytest.approx(1 - broken.double().mean().item())
    assert (result.robust_accuracy, result.clean_rejection) == tuple(metrics[["robust_accuracy", "clean_rejection"]])
    assert 0 < result.robust_accuracy.low < result.robust_accuracy < result.robust_accuracy.high < 1
    assert result.findings.holds.all(), result.findings
    assert list(result.curve.alpha) == list(ALPHAS)
    assert result.curve.value.is_monotonic_decreasing
    assert result.curve.value[0] <= metrics["robust_accuracy"] + 1e-9


def test_l2_has_a_closed_form_on_a_linear_model():
    model, x = Undefended(Linear(2, seed=1)), inside(60)
    z = model.classifier(x)
    weight = model.classifier.weight
    distance = (z[:, 0] - z[:, 1]).abs() / (weight[0] - weight[1]).norm()
    eps = float(distance.median())
    attacks = ["components", "joint", "square"]
    result = evaluate(model, x, z.argmax(1), eps, norm="L2", budget=QUICK, attacks=attacks)
    sure = (distance - eps).abs() > 0.02 * eps
    sure &= ((x - 0.5).abs() < 0.4).all(3).all(2).all(1)  # elsewhere the ball leaves [0,1]
    assert torch.equal(result.attacked["worst_case"][:].success[sure], (distance < eps)[sure])
    assert result.records.distance.max() <= eps + 1e-6


def test_it_prints_the_sentences_that_a_reader_needs(capsys, tmp_path):
    model, x = reject_class(), inside(12)
    result = evaluate(model.train(), x, labels_of(model, x), EPS, budget=QUICK, save_to=tmp_path / "out")
    assert str(result).startswith(f"Robust accuracy {result.robust_accuracy} of 12 images at Linf 8/255: right or")
    assert max(map(len, str(result).splitlines())) <= 100
    for text in (str(result), result.to_html(), result._repr_html_()):
        for words in ("clean accuracy", "robust accuracy", "worst case", "denial", "one attack is enough", "forwards"):
            assert words in text
        assert "Per cent of all images" in text
    assert model.training
    assert "image" in capsys.readouterr().err, "progress"
    assert {*result.table.columns} >= {"clean accuracy", "clean rejection", "robust accuracy", "correct under attack"}
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"records.csv", "sanity.csv", "curve.csv", "table.md", "worst_case", "joint"}
    assert "unfinished" not in files
    assert [file.name for file in (tmp_path / "out" / "joint").iterdir()] == ["00000000.safetensors"]


def test_the_order_of_the_images_has_no_influence_and_the_seed_has(whole):
    model, x, y, first = whole
    assert list(first.records.scenario.unique()) == ["paper", "joint", "worst_case", "denial"]
    assert {"on the network", "worst_case", *ATTACKS} - {"components", "square"} == set(first.attacked)
    turned = evaluate(model, x.flip(0), y.flip(0), EPS, budget=QUICK, ids=torch.arange(20).flip(0))
    other = evaluate(model, x, y, EPS, budget=QUICK, seed=1, attacks=["components", "joint"])
    images = first.attacked["joint"][:].images
    assert torch.equal(images, turned.attacked["joint"][:].images.flip(0))
    assert not torch.equal(images, other.attacked["joint"][:].images)


def test_chunk_by_chunk_it_is_the_same(whole, tmp_path, monkeypatch):
    model, x, y, result = whole
    monkeypatch.setattr(images_module, "CHUNK", 12 * x[0].nbytes)
    chunks = evaluate(model, x, y, EPS, budget=QUICK, save_to=tmp_path)
    same(chunks, result)
    assert len(list((tmp_path / "worst_case").iterdir())) == 2


def test_images_may_be_bytes_and_known_attacks_are_taken_as_they_are():
    model, stored = reject_class(), (255 * inside(10)).to(torch.uint8)
    model.lock = Lock()  # so that nothing can copy the model
    y, pixels, attacks = labels_of(model, stored / 255), stored / 255, ["components", "joint"]
    first = evaluate(model, stored, y, EPS, budget=QUICK, attacks=attacks)
    same(evaluate(model, pixels, y, EPS, budget=QUICK, attacks=attacks), first)
    known = one_margin(Undefended(model), pixels, y, component=0, tag="k", ball=Ball(EPS), seed=5, ids=torch.arange(10))
    result = evaluate(model, pixels, y, EPS, budget=QUICK, attacks=attacks, known=[known])
    assert torch.equal(result.attacked["on the network"][:].images, known.images)


def test_a_killed_call_continues_where_it_was(whole, tmp_path, monkeypatch):
    model, x, y, result = whole
    seen = []
    hook = model.models[0].register_forward_hook(lambda module, given, out: seen.append(len(out)))
    evaluate(model, x, y, EPS, budget=QUICK)
    everything = sum(seen)

    with monkeypatch.context() as patch:
        patch.setattr(Attacker, "denial", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, x, y, EPS, budget=QUICK, save_to=tmp_path)
    seen.clear()
    same(evaluate(model, x, y, EPS, budget=QUICK, save_to=tmp_path), result)
    hook.remove()
    finished = sum(int(result.attacked[name][:].forwards.sum()) for name in ("on the network", "joint", "paper"))
    assert sum(seen) < everything - finished
    assert not (tmp_path / "unfinished").exists()


def test_without_gradients_only_the_black_box_is_run_and_the_table_says_so():
    x, model = inside(10), reject_class(lambda out: out.round(decimals=1).detach())
    result = evaluate(model, x, labels_of(model, x), EPS, budget=QUICK)
    assert set(result.attacked) == {"worst_case"}
    assert "no gradient to the pixels: only the black-box attack was run" in str(result)


WORLDS = {
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "grad mode": nullcontext,
}


def settings() -> list:
    """What a call could change in the caller's program."""
    states = [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")]
    states += [torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision()]
    return [*states, torch.backends.cudnn.deterministic, torch.get_rng_state().tolist()]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_caller_finds_everything_as_it_was_and_gets_the_same_result(world, dtype):
    model, x = reject_class().train(), inside(8).requires_grad_()
    y, before = labels_of(model, x), x.detach().clone()
    attacks = ["components", "joint", "denial"]
    first = evaluate(model, x, y, EPS, budget=QUICK, attacks=attacks)
    torch.set_default_dtype(dtype)
    try:
        with WORLDS[world]():
            here, images = settings(), x * 1  # in inference mode these images can have no gradient
            result = evaluate(model, images, y, "8/255", budget=vars(QUICK), attacks=attacks, ids=list(range(8)))
            calibrate(lambda t: ConfidenceThreshold(model.models[0], t), images, 0.2)
            MultiShield(model, model)(images)
            assert settings() == here
    finally:
        torch.set_default_dtype(torch.float32)
    same(result, first)
    assert torch.equal(x, before)
    assert x.grad is None
    assert all(module.training for module in model.modules())


def test_a_model_that_changes_its_pixels_gets_a_copy_and_is_named():
    x = inside(10)
    model, y = InPlace(Linear(3)), Linear(3)(2 * (x - 0.25)).argmax(1)
    before, shield = x.clone(), MultiShield(model, Linear(3, seed=1))
    same_logits = MultiShield(Linear(3, scale=2.0, then=lambda z: z), Linear(3, seed=1))
    first = calibrate(lambda t: ConfidenceThreshold(model, t), x, 0.2).threshold
    assert calibrate(lambda t: ConfidenceThreshold(model, t), x, 0.2).threshold == first
    assert torch.equal(shield.scores(x)[1], same_logits.scores(x)[1]), "CLIP sees the pixels as they are"
    result = evaluate(shield, x, y, EPS, budget=QUICK, attacks=["components", "joint"])
    assert "the model changes the pixels that it is given" in str(result)
    assert torch.equal(x, before)


def test_a_defence_may_call_its_model_by_keyword():
    class Keyword(Undefended):
        def scores(self, x):
            return (self.models[0](x=x),)

    x = inside(6)
    result = evaluate(Keyword(Linear(3)), x, Linear(3)(x).argmax(1), EPS, budget=QUICK, attacks=["joint"])
    assert not result.notes


def test_a_folder_holds_one_evaluation(whole, tmp_path, monkeypatch):
    model, x, y, _ = whole
    monkeypatch.setenv("HOME", str(tmp_path))
    call = {"attacks": ["joint"], "budget": QUICK, "save_to": "~/out"}
    first = evaluate(model, x, y, EPS, **call)
    assert (tmp_path / "out" / "records.csv").is_file(), "in the home folder"
    same(evaluate(model, x, y, EPS, **call), first)
    fewer, other = {"images": x[:10], "labels": y[:10]}, {"model": Undefended(Linear(3))}
    for change in ({"attacks": ["square"]}, {"eps": 4 / 255}, fewer, other):
        with pytest.raises(UserError, match="holds other results or files; give an empty folder"):
            evaluate(**{"model": model, "images": x, "labels": y, "eps": EPS} | call | change)
    assert len(pd.read_csv(tmp_path / "out" / "records.csv")) == len(first.records)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("my own")
    with pytest.raises(UserError, match="holds other results or files"):
        evaluate(model, x, y, EPS, **call | {"save_to": tmp_path / "mine"})


def test_a_defence_may_have_attributes_of_any_name_and_a_part_without_gradient(capsys):
    class Own(Detector):
        gap, parts, alignment = 0.5, None, "left"

        def scores(self, x):
            return self.classifier(x).detach(), x.mean((1, 2, 3))

    result = evaluate(Own(), inside(6), torch.zeros(6, dtype=torch.long), EPS, budget=QUICK)
    assert "only the black-box attack was run" in str(result)
    assert set(result.attacked) == {"worst_case"}


class Detector(Defence):
    """A score of one number per image beside the classifier's."""

    def __init__(self):
        super().__init__()
        self.classifier = Linear(3).eval()

    def scores(self, x):
        return self.classifier(x), x.mean((1, 2, 3))

    def margins(self, scores):
        return torch.stack([margin_over_others(scores[0]), (0.6 - scores[1])[:, None].expand_as(scores[0])], 1)


def test_a_detector_may_give_one_number_per_image():
    result = evaluate(Detector(), inside(6), torch.zeros(6, dtype=torch.long), EPS, budget=QUICK)
    assert {"on component 1", "on component 2"} <= set(result.attacked)
    assert not result.notes, "the defence's own flag is no training mode"


def test_a_random_model_is_accepted_as_wrong_as_often_as_the_formula_says():
    sigma, threshold, model, x, draws = 0.1, 0.3, Linear(2, seed=1), inside(30), 12

    class Noisy(Linear):
        def forward(self, x):
            return super().forward(x + sigma * torch.randn_like(x))

    def run(steps):
        budget = {"joint": {"steps": steps}, "components": {"targets": 1, "steps": 5}, "sanity": {"images": 1}}
        defence = ConfidenceThreshold(Noisy(2, seed=1), threshold)
        return evaluate(defence, x, y, EPS, draws=draws, attacks=["components", "joint"], budget=budget)

    z, weight, normal = model(x), model.weight[0] - model.weight[1], torch.distributions.Normal(0, 1)
    y, lead, spread = z.argmax(1), (z[:, 0] - z[:, 1]).abs(), sigma * weight.norm()
    wrong = normal.cdf((model.reach(EPS)[0, 1] - lead - threshold) / spread)
    result = run(10)
    rows = result.records[result.records.scenario == "worst_case"]
    assert (abs(rows.attack_success - wrong.numpy()) < 5 * (0.25 / draws) ** 0.5).all()
    assert result.robust_accuracy == pytest.approx(1 - wrong.mean().item(), abs=0.05)
    assert result.clean_accuracy == pytest.approx(normal.cdf((lead - threshold) / spread).mean().item(), abs=0.05)
    assert result.robust_accuracy.low < 1 - wrong.mean() < result.robust_accuracy.high
    first = run(1)
    torch.rand(7)  # the caller's random numbers change nothing, and are not changed
    before = torch.get_rng_state()
    same(run(1), first)
    assert torch.equal(torch.get_rng_state(), before)
