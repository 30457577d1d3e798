"""Hash the operations that the demo's numbers rest on, to compare the bytes of two processors.

    python benchmarks/portable.py                   # the portable arithmetic, compared with portable.txt
    python benchmarks/portable.py native            # the machine's own arithmetic, compared with the same file
    python benchmarks/portable.py native speed      # milliseconds per batch of adversarial training, either way

An Intel Xeon with AVX-512 and AMX wrote portable.txt; docs/portability.md names the other machines that agree.
"""

import hashlib
import sys
import time
from pathlib import Path

from paper.pipeline import arithmetic

KIND = sys.argv[1] if len(sys.argv) > 1 else "portable"
arithmetic.choose(KIND)  # before torch is imported

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from paper.models.cifar_resnet import build_network
from paper.models.classifier import Classifier

GENERATOR = torch.Generator().manual_seed(0)
# The demo's ResNet-8 and its CLIP's tower: input channels, output channels, kernel, stride, images, side.
CONVOLUTIONS = [
    (3, 16, 3, 1, 8, 32),
    (16, 16, 3, 1, 8, 32),
    (16, 32, 3, 2, 8, 32),
    (64, 64, 3, 1, 8, 8),
    (3, 32, 3, 2, 4, 64),
]


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=GENERATOR) - 0.5


def convolution(inputs, outputs, kernel, stride, images, side) -> list[torch.Tensor]:
    x = uniform(images, inputs, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = uniform(outputs, inputs, kernel, kernel).requires_grad_()
    out = F.conv2d(x, weight, stride=stride, padding=kernel // 2)
    return [out, *torch.autograd.grad(out.square().sum(), (x, weight))]


def training() -> list[torch.Tensor]:
    """Three steps of adversarial training of a ResNet-8, and of a text transformer beside it."""
    torch.manual_seed(0)
    model = Classifier(build_network("resnet8", 10), [0.5] * 3, [0.25] * 3)
    text = nn.TransformerEncoderLayer(128, 2, 256, dropout=0.0, batch_first=True)
    sgd = torch.optim.SGD(model.parameters(), 0.05, 0.9, nesterov=True, weight_decay=5e-4)
    adam = torch.optim.AdamW(text.parameters(), 3e-3, weight_decay=0.05, fused=True)
    for _ in range(3):
        x, y = (uniform(32, 3, 32, 32) + 0.5).requires_grad_(), torch.randint(10, (32,), generator=GENERATOR)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
        loss = F.cross_entropy(model((x.detach() + 8 / 255 * gradient.sign()).clamp(0, 1)), y)
        loss = loss + F.cross_entropy(F.normalize(text(uniform(8, 16, 128))[:, 0], dim=-1), torch.arange(8))
        sgd.zero_grad()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(text.parameters(), 0.5)
        sgd.step()
        adam.step()
    return [*model.state_dict().values(), *text.state_dict().values()]


def operations() -> dict[str, list[torch.Tensor]]:
    """The results of the operations, by name."""
    a, b, x = uniform(64, 128), uniform(128, 128), uniform(4, 16, 16, 16)
    query, image, counts = uniform(4, 2, 16, 64), uniform(4, 3, 32, 32).requires_grad_(), np.random.default_rng(0)
    enlarged = F.interpolate(image, size=64, mode="bicubic", antialias=True)
    normal = torch.from_numpy(counts.normal(size=1000))
    return {
        "random numbers": [uniform(1000), torch.randn(1000, generator=GENERATOR)],
        "matrix products": [a @ b, F.linear(a, b, b[0])],
        "exp, log, tanh, rsqrt": [x.exp(), (x + 0.6).log(), x.tanh(), (x + 0.6).rsqrt()],
        "softmax, cross-entropy": [(10 * a).softmax(1), F.log_softmax(10 * a, 1)],
        "gelu, norms": [F.gelu(a), F.layer_norm(a, (128,)), F.normalize(a, dim=-1)],
        "attention": [F.scaled_dot_product_attention(query, query, query, is_causal=True)],
        "bicubic": list(torch.autograd.grad(enlarged.square().sum(), image)),
        "batch norm": [nn.BatchNorm2d(16)(x)],
        "sums": [uniform(100_000).sum(), uniform(1000, 7).mean(0), uniform(1000).std()],
        "numpy": [normal.exp(), torch.tensor([normal.numpy().sum(), normal.numpy().std()])],
        **{f"convolution {c}": convolution(*c) for c in CONVOLUTIONS},
        "three steps of training": training(),
    }


def speed() -> None:
    """Milliseconds for a batch of 32 images of the demo's adversarial training, mean of 40."""
    model = Classifier(build_network("resnet8", 10), [0.5] * 3, [0.25] * 3)
    optimiser = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True)
    for step in range(43):
        if step == 3:
            started = time.monotonic()
        x, y = (uniform(32, 3, 32, 32) + 0.5).requires_grad_(), torch.arange(32) % 10
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
        optimiser.zero_grad()
        F.cross_entropy(model((x.detach() + 8 / 255 * gradient.sign()).clamp(0, 1)), y).backward()
        optimiser.step()
    print(f"{KIND}, {torch.get_num_threads()} threads: {1000 * (time.monotonic() - started) / 40:.1f} ms per batch")


def main() -> None:
    lines = []
    for name, tensors in operations().items():
        data = b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)
        lines.append(f"{hashlib.sha256(data).hexdigest()[:16]}  {name}")
    print(*lines, sep="\n")
    reference = Path(__file__).with_suffix(".txt")
    expected = reference.read_text(encoding="utf-8").splitlines() if reference.exists() else []
    different = [line[18:] for line, other in zip(lines, expected, strict=False) if line != other]
    print(f"{KIND}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}:", end=" ")
    print(f"other bytes in {', '.join(different)}" if different else f"the same bytes as {reference.name}")


if __name__ == "__main__":
    speed() if "speed" in sys.argv else main()
