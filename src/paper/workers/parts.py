"""Long computations in parts of fixed size, each kept on disk as soon as it is there."""

from collections.abc import Callable

from torch import Tensor, nn

from multishield.progress import progress
from multishield.resume import checkpoint
from paper.workers.spread import spread


def in_parts(
    task: str,
    compute: Callable[[nn.Module, object], dict[str, Tensor]],
    model: nn.Module,
    pick: Callable[[slice], object],
    total: int,
    size: int,
    *inputs,
    unit: str = "batch",
) -> list[dict[str, Tensor]]:
    """Compute `total` rows in parts of `size`, by as many workers as are wanted.

    Args:
        task: a name for the progress line and the folder.
        compute: gets the model and what was picked of a part, returns its named tensors.
        model, pick: see `spread`; `pick` gets the slice of a part.
        inputs: everything the result depends on (see `fingerprint`).
        unit: what a part is called in the progress line.
    """
    slices = [slice(start, min(start + size, total)) for start in range(0, total, size)]
    with checkpoint(task, total, size, *inputs) as kept:
        names = [f"{part.start:08d}" for part in slices]
        found = {number: value for number, name in enumerate(names) if (value := kept.get(name)) is not None}
        left = [number for number in range(len(slices)) if number not in found]
        bar = progress(None, task, unit, total=len(slices), done=len(slices) - len(left))

        def work(model, part, emit) -> None:
            emit([0], compute(model, part), 0)

        def take(numbers, value, _left, who) -> None:
            for number in numbers:
                found[number] = value
                kept.put(names[number], value)
            bar.set_postfix_str(who, refresh=False)
            bar.update(len(numbers))

        spread(work, model, lambda numbers: pick(slices[numbers[0]]), left, take, what=unit, at_most=1)
        bar.close()
    return [found[number] for number in range(len(slices))]
