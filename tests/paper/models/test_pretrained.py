"""Networks by source: built, loaded exactly, differentiable from pixels to logits; mistakes are sentences."""

import urllib.error
from types import SimpleNamespace

import pytest
import torch
import torchvision

from killing import data, same_bytes_after_death
from multishield.errors import UserError
from multishield.files import save_tensors
from multishield.forward import freeze, outputs
from paper.models import pretrained
from paper.models.classifier import Classifier, load_classifier, save_classifier
from paper.params.sections import ClassifierFactory, FineTuned, FromZoo, Torchvision
from paper.stages import training
from paper.training import classifier

KEY = "training.net"


def write(network: torch.nn.Module, root) -> str:
    """Write the weights to a file in the folder; returns its path."""
    save_tensors(root / "net.safetensors", network.state_dict())
    return str(root / "net.safetensors")


def check_round_trip(model, params, classes, root, side=32) -> None:
    """The pixels have a gradient, and the classifier answers the same after the training stage's files are read."""
    x = torch.rand(2, 3, side, side, requires_grad=True)
    assert torch.autograd.grad(model(x)[0, 0], x)[0].any()
    save_classifier(model, params, classes, root / "artifacts" / "training" / "net")
    assert torch.equal(outputs(load_classifier("net"), x), outputs(model, x))


LARGE = [pytest.param(name, marks=pytest.mark.long) for name in ("resnet50", "wide_resnet50_2")]


@pytest.mark.parametrize("name", ["resnet18", *LARGE])
def test_weights_from_a_file(project_root, name):
    params = published(name, write(torchvision.models.get_model(name, num_classes=5), project_root))
    model, history = classifier.train_or_load("net", params, data(), data(0), 5, 0, None)
    assert history.epoch.tolist() == [0]
    assert history.clean_accuracy.isna().all()
    assert (model.size, model.mean.flatten()[0].item()) == (224, pytest.approx(0.485))
    check_round_trip(model, params, 5, project_root, side=64)


def test_the_network_that_autoattack_ships(project_root):
    params = FromZoo(source="model_zoo", name="AutoAttack-ResNet18")
    check_round_trip(freeze(Classifier(*pretrained.load(params, 10, KEY))), params, 10, project_root)
    with pytest.raises(UserError, match=r"it returns \(6, 10\); .* the data set's 37 classes"):
        classifier.train_or_load("net", params, data(), data(0), 37, 0, None)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(project_root, name):
    # As published weights have them, and the two build without when the training stage's weights are loaded.
    state = torchvision.models.get_model(name, num_classes=5, init_weights=False).state_dict()
    plain = pretrained.build({"source": "torchvision", "model": name}, 5)
    assert {k for k in state if not k.lower().startswith("aux")} == plain.state_dict().keys()
    assert plain.eval()(torch.rand(1, 3, 96, 96)).shape == (1, 5)


def finetuned(**changes) -> FineTuned:
    values = {"source": "finetune", "model": "resnet18", "weights": None, "epochs": 2, "batch_size": 16}
    return FineTuned(**(values | {"learning_rate": 1e-3} | changes))


def test_a_killed_fine_tuning_ends_with_the_same_bytes_of_every_layer(project_root):
    params = finetuned(augment=True, learning_rate=0.01)

    def train(resume):
        return classifier.train_or_load("net", params, data(32), data(12, 1), 3, 0, resume)

    resumed, history = same_bytes_after_death(project_root / "resume", classifier, "train_epoch", 1, train)
    assert history[history.chosen].clean_accuracy.item() == history.clean_accuracy.max()
    torch.manual_seed(0)
    start = pretrained.load(params, 3, KEY)[0].state_dict()
    for name, tensor in resumed.network.named_parameters():
        assert not tensor.requires_grad
        assert not torch.equal(start[name], tensor.cpu()), name
    check_round_trip(resumed, params, 3, project_root)


def test_fine_tuning_starts_from_the_weights_but_for_the_head(project_root):
    published = torchvision.models.resnet18(num_classes=1000)
    file = write(published, project_root)
    network, mean, _, size = pretrained.load(finetuned(weights=file), 3, KEY)
    assert torch.equal(network.conv1.weight, published.conv1.weight)
    assert (network.fc.weight.shape, size, mean) == ((3, 512), 224, [0.485, 0.456, 0.406])
    del published.conv1
    write(published, project_root)
    with pytest.raises(UserError, match=r"Missing key.*: \"conv1.weight\"\.\);"):
        pretrained.load(finetuned(weights=file), 3, KEY)
    with pytest.raises(UserError, match="no linear layer"):
        pretrained.load(finetuned(model="squeezenet1_0", weights="DEFAULT"), 3, KEY)


FACTORY = """import torch
def shapes(classes):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, classes))
class Noisy(torch.nn.Linear):
    def __init__(self, classes):
        super().__init__(3 * 32 * 32, classes)
        self.register_buffer("noise", torch.randn(classes), persistent=False)
    def forward(self, x):
        return super().forward(x.flatten(1)) + self.noise
short = lambda classes: torch.nn.Flatten()
nothing = lambda classes: None
"""


def test_a_factory_builds_a_classifier(project_root, monkeypatch):
    (project_root / "nets_of_mine.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(project_root))
    params = ClassifierFactory(source="factory", factory="nets_of_mine:shapes")
    model, history = classifier.train_or_load("net", params, data(), data(30, 1), 3, 0, None)
    assert 0 <= history.clean_accuracy.item() <= 1
    model.network[1].weight.add_(1)  # as if the function had loaded weights: those of the file count afterwards
    check_round_trip(model, params, 3, project_root)
    stage = object.__new__(training.Stage)
    noisy = ClassifierFactory(source="factory", factory="nets_of_mine:Noisy")
    vars(stage).update(params=SimpleNamespace(training={"net": noisy}), item="net", data=data(), classes=["a"] * 3)
    stage.folder = project_root / "artifacts" / "training" / "net"
    with pytest.raises(UserError, match=r"training\.net answers otherwise once it was stored and loaded: scores"):
        stage.save(*classifier.train_or_load("net", noisy, data(), data(0), 3, 0, None))
    for name, words in (("short", r"returns \(6, 3072\); it must"), ("nothing", "returned NoneType")):
        params = ClassifierFactory(source="factory", factory=f"nets_of_mine:{name}")
        with pytest.raises(UserError, match=words):
            classifier.train_or_load("net", params, data(), data(0), 3, 0, None)


def published(model="resnet18", weights="DEFAULT") -> Torchvision:
    return Torchvision(source="torchvision", model=model, weights=weights)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (published("resnet19"), "which torchvision does not know; did you mean resnet1"),
        (published(weights="BEST"), "training.net.weights is 'BEST'; .* one of IMAGENET1K_V1, DEFAULT"),
        (published(weights="no.safetensors"), "no.safetensors"),
        (finetuned(weights="IMAGENET1K_V9"), "training.net.weights is 'IMAGENET1K_V9'"),
        (ClassifierFactory(source="factory", factory="absent:net"), "absent cannot be imported"),
    ],
)
def test_a_wrong_name_is_one_sentence_before_the_first_stage_and_after(project_root, params, words):
    for call in (lambda: pretrained.check(params, KEY), lambda: pretrained.load(params, 3, KEY)):
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_weights_without_a_network_are_one_sentence(project_root, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    pretrained.check(published(), KEY)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"no network.*without a network.*safetensors"):
        pretrained.load(published(), 1000, KEY)
