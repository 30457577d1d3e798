"""Networks: sizes of the literature, exact loading, bad checkpoints."""

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torchvision.transforms.v2.functional import normalize

from multishield.errors import UserError
from paper.models import pretrained
from paper.models.cifar_resnet import build_network
from paper.models.classifier import Classifier, load_classifier, save_classifier
from paper.params.sections import Classifiers

HALF = [0.5] * 3
# He et al. 2016, table 6: 0.27M, 0.46M, 0.66M, 0.85M parameters; ResNet-18 for 32x32 has 11.17M.
MILLIONS = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet18": 11.17}


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_sizes_and_both_directions(name, millions):
    network = build_network(name, 10).eval()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits = network(x)
    assert logits.shape == (2, 10)
    (gradient,) = torch.autograd.grad(logits.max(), x)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_normalisation_and_resizing_are_inside():
    network, x = build_network("resnet8", 4).eval(), torch.rand(2, 3, 32, 32)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    assert torch.allclose(Classifier(network, mean, std).eval()(x), network(normalize(x, mean, std)), atol=1e-6)
    model = Classifier(torch.nn.Flatten(), [0.0] * 3, [1.0] * 3, 8)
    assert torch.equal(model(torch.ones(2, 3, 8, 8)), torch.ones(2, 192))
    assert torch.allclose(model(torch.ones(2, 3, 20, 20)), torch.ones(2, 192))


def checkpoint(path, architecture="resnet8") -> Classifiers:
    values = {"source": "checkpoint", "architecture": architecture, "path": str(path), "mean": HALF, "std": HALF}
    return TypeAdapter(Classifiers).validate_python(values)


def read(path, architecture="resnet8", classes=4) -> Classifier:
    return Classifier(*pretrained.load(checkpoint(path, architecture), classes, "training.net")).eval()


@pytest.fixture
def saved(project_root):
    model, folder = Classifier(build_network("resnet8", 4), HALF, HALF), project_root / "artifacts" / "training" / "net"
    save_classifier(model, checkpoint("unused"), 4, folder)
    return model.eval(), folder / "weights.safetensors"


def test_bad_checkpoints(saved, tmp_path):
    model, path = saved
    state, broken = {k: v.contiguous() for k, v in model.network.state_dict().items()}, tmp_path / "broken.safetensors"

    def refused(words, file=broken, **options):
        with pytest.raises(UserError, match=words):
            read(file, **options)

    save_file({k: v for k, v in state.items() if k != "linear.bias"}, broken)
    refused('Missing key.*: "linear.bias"')
    save_file({**state, "head.weight": torch.zeros(1)}, broken)
    refused('Unexpected key.*: "head.weight"')
    save_file({**state, "linear.bias": torch.tensor([0, 0, float("nan"), 0])}, broken)
    refused("broken.safetensors: linear.bias holds values that are not finite")
    for kind in (torch.int32, torch.bool, torch.int8):
        save_file({**state, "linear.bias": state["linear.bias"].to(kind)}, broken)
        refused(f"linear.bias was cast to {kind}; give the weights in floating point")
    broken.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused("a pointer of Git LFS in place of the file; run `git lfs pull`")
    torch.save(state, broken)
    refused("pickled checkpoints")
    broken.write_bytes(path.read_bytes()[:-100])
    refused("safetensors file")
    refused("size mismatch for linear.weight.* give weights for this number of classes", path, classes=10)
    refused("Missing key.* name the architecture", path, architecture="resnet20")
    refused("nowhere.safetensors', which is not a file", tmp_path / "nowhere.safetensors")


def test_weights_of_the_stage_without_batch_counters_load(saved, tmp_path):
    model, loaded, x = saved[0], load_classifier("net"), torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    assert not any(p.requires_grad for p in loaded.parameters())
    state = {k: v.contiguous() for k, v in model.network.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "plain.safetensors")
    assert torch.equal(read(tmp_path / "plain.safetensors")(x), model(x))
    for prefix in ("_orig_mod.", "module.", "module._orig_mod."):
        save_file({prefix + k: v for k, v in state.items()}, tmp_path / "wrapped.safetensors")
        assert torch.equal(read(tmp_path / "wrapped.safetensors")(x), model(x))
