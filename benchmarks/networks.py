"""Two small networks without batch norm, on grey images of one channel: other ones than the pipeline trains.

They are trained against PGD on the demo's shapes, halved to 16 pixels, in a minute or two; then their files are read.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multishield.files import load_tensors, save_tensors
from multishield.images import Images
from paper import paths

EPS = 4 / 255  # of the training, and of the attacks on these networks
EPOCHS = {"convolutions": 12, "layers": 25}


def images(split: str, count: int | None = None) -> Images:
    """The first shapes of a split, "train" or "test", as grey images (N,1,16,16) in [0,1]."""
    pixels, labels = (
        np.load(paths.root() / f"data/shapes/{split}_{name}.npy")[:count] for name in ("images", "labels")
    )
    grey = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().mean(1, keepdim=True) / 255
    return Images(F.avg_pool2d(grey, 2), torch.from_numpy(labels), torch.arange(len(labels)))


def network(name: str) -> nn.Module:
    """One of the two, frozen: "convolutions" (0.6 MB), or "layers" (0.4 MB), which are linear."""
    torch.manual_seed(0)
    sizes = {"convolutions": (1024, 100), "layers": (256, 256)}[name]
    head = [nn.Flatten(), nn.Linear(*sizes), nn.ReLU(), nn.Linear(sizes[1], 128), nn.ReLU(), nn.Linear(128, 10)]
    channels = [(1, 16, 3, 1), (16, 32, 4, 2), (32, 64, 4, 2)] if name == "convolutions" else []
    body = [layer for a, b, side, step in channels for layer in (nn.Conv2d(a, b, side, step, 1), nn.ReLU())]
    made, file = nn.Sequential(*body, *head), paths.state("benchmarks", f"{name}.safetensors")
    if not file.is_file():
        _train(made, images("train"), EPOCHS[name])
        save_tensors(file, made.state_dict())
    made.load_state_dict(load_tensors(file))
    return made.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # as the stages do


def _train(model: nn.Module, data: Images, epochs: int) -> None:
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.5e-3, total_steps=epochs * -(-len(data) // 128))
    for epoch in range(epochs):
        eps = EPS * min(1.0, 2 * epoch / epochs)  # with the whole radius from the start nothing is learned
        for batch in torch.randperm(len(data)).split(128):
            x, y = data.images[batch], data.labels[batch]
            loss = F.cross_entropy(model(_perturbed(model, x, y, eps) if eps else x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def _perturbed(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 4) -> Tensor:
    attacked = x
    for _ in range(steps):
        attacked = attacked.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(attacked), y), attacked)
        attacked = (attacked.detach() + eps / 2 * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return attacked.detach()
