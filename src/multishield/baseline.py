"""Scenario 1: AutoAttack on the classifier alone. Its images are scenario 2's, too."""

import torch
from torch import Tensor, nn

from multishield.attacks.autoattack import STANDARD, autoattack
from multishield.dataset import Split
from multishield.errors import UserError
from multishield.evaluation import Attacked
from multishield.params import Baseline
from multishield.resume import in_chunks


def run_baseline(name: str, classifier: nn.Module, data: Split, params: Baseline, eps: float, seed: int) -> Attacked:
    """Scenario 1: AutoAttack on the classifier alone. Resumes after the last complete batch.

    Raises:
        UserError: a batch does not fit into the memory of the device. It is not made smaller by itself, because
            AutoAttack's random numbers, and so its results, depend on the batch.
    """
    attacks = STANDARD if params.attacks == "standard" else tuple(params.attacks)

    def compute(part: slice) -> dict[str, Tensor]:
        chunk = data[part]
        try:
            result, names = autoattack(
                classifier, chunk.pixels, chunk.labels, eps=eps, seed=seed, ids=chunk.ids, attacks=attacks
            )
        except torch.OutOfMemoryError:
            raise UserError(
                f"baseline.batch_size is {params.batch_size}, and as many images at once do not fit into the memory of "
                f"the device with {name}; lower it"
            ) from None
        codes = torch.tensor([-1 if n == "clean" else attacks.index(n) if n else -2 for n in names])
        return {"images": result.images, "code": codes, "forwards": result.forwards, "backwards": result.backwards}

    t = in_chunks(
        f"baseline {name}",
        compute,
        len(data),
        params.batch_size,
        classifier,
        data.images,
        data.labels,
        attacks,
        eps,
        seed,
    )
    names = {-1: "clean", -2: "", **dict(enumerate(attacks))}
    return Attacked(t["images"], [names[c] for c in t["code"].tolist()], t["forwards"], t["backwards"])
