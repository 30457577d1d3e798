"""ResNets for small images (He et al. 2016, section 4.2, option A), and the exact loading of weights."""

from torch import Tensor, nn
from torch.nn import functional as F

from multishield.errors import UserError, reason_of


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: strided, new channels filled with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.new = stride, outputs - inputs  # channels are new exactly where the stride is 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        short = x
        if self.new:
            # By pooling: a slice's gradient leaves channels-last, which makes earlier layers 30 to 70 times slower.
            short = F.avg_pool2d(x, 1, self.stride)
            short = F.pad(short, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        return F.relu(out + short, inplace=True)


class CifarResNet(nn.Module):
    """ResNet of depth 6n+2 for small images: three stages of n blocks with 16, 32, 64 channels."""

    def __init__(self, depth: int, classes: int):
        super().__init__()
        blocks, widths = (depth - 2) // 6, (16, 16, 32, 64)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage in (1, 2, 3):
            first = Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            rest = [Block(widths[stage], widths[stage], 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def build_network(architecture: str, classes: int) -> nn.Module:
    """A random network, by a name of `ARCHITECTURES`; "resnet18" is torchvision's, with a 3x3 stem, no max-pooling."""
    if architecture != "resnet18":
        return CifarResNet(int(architecture.removeprefix("resnet")), classes)
    import torchvision  # slow to import: only this network needs it

    network = torchvision.models.resnet18(num_classes=classes)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return network


def unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a compiled ("_orig_mod.") or a parallel ("module.") model by the names of the model in it."""
    weights = {key.replace("_orig_mod.", ""): weight for key, weight in weights.items()}
    parallel = all(key.startswith("module.") for key in weights)
    return {key.removeprefix("module."): weight for key, weight in weights.items()} if parallel else weights


def load_exactly(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load a state dict whose keys and shapes match exactly: no layer stays random.

    Batch norm's counters, which have no influence on inference, may be missing, as in old checkpoints. Raises
    UserError, which names `source`, if the weights do not match, or one is not finite or cast to whole numbers.
    """
    own = module.state_dict()
    if not weights.keys() & own.keys():
        weights = unwrapped(weights)
    for key, weight in weights.items():
        if key in own and own[key].is_floating_point() > weight.is_floating_point():
            raise UserError(f"{source}: {key} was cast to {weight.dtype}; give the weights in floating point")
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        remedy = "name the architecture it was made for, and give weights for this number of classes"
        raise UserError(f"{source} does not fit ({reason_of(error)}); {remedy}") from None
    for key, weight in module.state_dict().items():
        if not weight.isfinite().all():
            raise UserError(f"{source}: {key} holds values that are not finite; the weights are damaged or diverged")
