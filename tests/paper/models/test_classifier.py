"""Networks: sizes of the literature, exact loading, bad checkpoints."""

import pytest
import torch
from safetensors.torch import save_file

from multishield.errors import UserError
from paper.models.cifar_resnet import build_network
from paper.models.classifier import Classifier, load_classifier, read_classifier, save_classifier

HALF = [0.5] * 3


# He et al. 2016, table 6: 0.27M, 0.46M, 0.66M, 0.85M parameters; ResNet-18 for 32x32 has 11.17M.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet18", 11.17)],
)
def test_sizes_and_both_directions(name, millions):
    network = build_network(name, 10).eval()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits = network(x)
    assert logits.shape == (2, 10)
    (gradient,) = torch.autograd.grad(logits.max(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_normalisation_is_inside():
    network = build_network("resnet8", 4).eval()
    model = Classifier(network, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]).eval()
    x = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    assert torch.allclose(model(x), network((x - mean) / std), atol=1e-6)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").touch()
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    model = Classifier(build_network("resnet8", 4), HALF, HALF)
    save_classifier(
        model, {"source": "train", "architecture": "resnet8"}, 4, tmp_path / "artifacts" / "training" / "net"
    )
    return model, tmp_path / "artifacts" / "training" / "net" / "weights.safetensors"


def test_round_trip_and_frozen(saved):
    model, _ = saved
    loaded = load_classifier("net")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(x), model.eval()(x))
    assert not any(p.requires_grad for p in loaded.parameters())


def read(path, architecture="resnet8", classes=4):
    return read_classifier(path, architecture, classes, HALF, HALF)


def test_bad_checkpoints(saved, tmp_path):
    model, path = saved
    state = model.network.state_dict()
    broken = tmp_path / "broken.safetensors"

    save_file({k: v.contiguous() for k, v in state.items() if k != "linear.bias"}, broken)
    with pytest.raises(UserError, match=r"1 keys are missing \(such as \['linear.bias'\]\)"):
        read(broken)
    save_file({**{k: v.contiguous() for k, v in state.items()}, "head.weight": torch.zeros(1)}, broken)
    with pytest.raises(UserError, match=r"1 are extra \(such as \['head.weight'\]\)"):
        read(broken)
    with pytest.raises(UserError, match="number of classes"):
        read(path, classes=10)
    with pytest.raises(UserError, match=r"keys are missing .*are extra"):
        read(path, architecture="resnet20")
    torch.save(state, broken)
    with pytest.raises(UserError, match="pickled checkpoints"):
        read(broken)
    broken.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a safetensors file"):
        read(broken)
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "nowhere.safetensors")


def test_a_checkpoint_without_batch_counters_loads(saved, tmp_path):
    model, _ = saved
    state = {k: v.contiguous() for k, v in model.network.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "plain.safetensors")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(read(tmp_path / "plain.safetensors")(x), model.eval()(x))
