"""On a GPU: the verdicts of a CPU, and the stored image decides."""

import pytest
import torch

from multishield import MultiShield, evaluate
from multishield.attacks.threat_model import evaded
from multishield.forward import device, device_of, forward
from small import Convolutions

pytestmark = pytest.mark.gpu


def test_verdicts_agree_and_an_image_that_the_gpu_has_broken_is_broken_on_the_cpu():
    shield, images = MultiShield(Convolutions(10), Convolutions(10), 0.01), torch.rand(100, 3, 8, 8)
    labels, worst = shield.classifier(images).argmax(1), []
    for kind in ("cpu", "cuda"):
        result = evaluate(shield, images, labels, 2 / 255, attacks=("components", "joint"), device=kind)
        worst.append(result.attacked["worst_case"][:])
    cpu, gpu = worst
    assert 0 < int(cpu.success.sum()) < 100
    assert int((cpu.success != gpu.success).sum()) <= 1
    with torch.no_grad():
        again = evaded(forward(shield.cpu(), gpu.images), labels)
    assert int((again != gpu.success).sum()) <= 1, "but for ties in the last bit"


def test_models_go_to_the_gpu_which_multiplies_in_full_precision():
    assert device().type == "cuda"
    assert device_of(Convolutions().to(device())).type == "cuda"
    assert not torch.backends.cuda.matmul.allow_tf32
