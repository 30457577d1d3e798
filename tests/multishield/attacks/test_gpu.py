"""On a GPU: the verdicts of a CPU, and the stored image decides."""

import pytest
import torch
from torch import nn

from multishield import evaluate
from multishield.attacks.threat_model import evaded
from multishield.forward import device, device_of, forward
from multishield.shield import MultiShield

pytestmark = pytest.mark.gpu


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 10)
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x - 0.5)


@pytest.fixture(scope="module")
def evaluations():
    """The same shield and images on the CPU and on the GPU."""
    torch.manual_seed(0)
    shield = MultiShield(Network(), Network(), 0.01).requires_grad_(False)
    images = torch.rand(100, 3, 16, 16)
    labels = shield.classifier(images).argmax(1)
    attacks = ("parts", "joint")
    found = {
        where: evaluate(shield, images, labels, 2 / 255, attacks=attacks, device=where) for where in ("cpu", "cuda")
    }
    return shield.cpu(), labels, found


def test_verdicts_agree(evaluations):
    *_, found = evaluations
    cpu, gpu = (found[where].attacked["adaptive"].success for where in ("cpu", "cuda"))
    assert 0 < int(cpu.sum()) < 100
    assert int((cpu != gpu).sum()) <= 1


def test_what_the_gpu_has_broken_is_broken_on_the_cpu(evaluations):
    shield, labels, found = evaluations
    attacked = found["cuda"].attacked["adaptive"]
    with torch.no_grad():
        again = evaded(forward(shield, attacked.images), labels)
    assert int((again != attacked.success).sum()) <= 1, "but for ties in the last bit"


def test_a_gpu_convolves_in_full_precision_and_is_where_models_go(evaluations):
    assert device().type == "cuda"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert device_of(Network().to(device())).type == "cuda"
