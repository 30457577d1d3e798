"""Where an attack's time goes: one forward and backward to the pixels, by what was done to the model and by batch size.

    python benchmarks/throughput.py CLASSIFIER [--profile]

Run it in a project whose pipeline has run, with nothing else on the machine. It prints Markdown tables; times are
medians of interleaved repeats, and only their ratios mean something. `--profile` adds the operators that take most of
the time.
"""

import argparse
import copy
import time

import torch
from torch.profiler import ProfilerActivity, profile

from multishield.attacks.loop.folding import folded
from multishield.data import splits
from multishield.evaluation.scenarios import load_shield
from multishield.params import Params


def several(out):
    return out if isinstance(out, tuple) else (out,)


def step(model, x, half: bool = False) -> None:
    """One forward, and the gradient to the pixels of one number per model."""
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        out = several(model(x))
    for i, o in enumerate(out):
        torch.autograd.grad(o.float().amax(1).sum(), x, retain_graph=i + 1 < len(out))


def medians(functions: dict, repeats: int) -> dict:
    """Seconds per call, medians of repeats in turn."""
    times = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if round_:  # the first one warms up
                times[name].append(time.perf_counter() - started)
    return {name: sorted(t)[len(t) // 2] for name, t in times.items()}


def ways(model: torch.nn.Module, call: str, x: torch.Tensor) -> dict:
    """The same step on the model as it is, and after each measure."""

    def of(module):
        return getattr(module, call)

    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    trained = copy.deepcopy(plain).requires_grad_(True)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    twin = folded(of(last), x)
    compiled = torch.compile(twin)
    return {
        "as trained: gradients for parameters, channels first": lambda: step(of(trained), x),
        "frozen": lambda: step(of(plain), x),
        "frozen, channels last": lambda: step(of(last), x),
        "frozen, channels last, folded": lambda: step(twin, x),
        "frozen, channels last, bf16": lambda: step(of(last), x, half=True),
        "frozen, channels last, folded, bf16": lambda: step(twin, x, half=True),
        "frozen, channels last, folded, compiled": lambda: step(compiled, x),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    shield = load_shield(options.classifier, Params.load().multishield.tolerance)
    x = splits.load_split("evaluation").pixels[:128]
    print(f"{options.classifier}, batch {len(x)}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| one step on | " + options.classifier + " | its CLIP |\n|---|---:|---:|")
    columns = [medians(ways(m, "forward", x), options.repeats) for m in (shield.classifier, shield.alignment)]
    for name in columns[0]:
        cells = [f"{1000 * c[name]:.0f} ms ({c['frozen'] / c[name]:.1f}x)" for c in columns]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    sizes = [n for n in (16, 32, 64, 128, 256) if n <= 2 * len(x)]
    many = torch.cat([x, x])
    times = medians({n: lambda n=n: step(shield.scores, many[:n]) for n in sizes}, options.repeats)
    print("\n| batch | images per second, the largest is 1 |\n|---:|---:|")
    best = max(n / t for n, t in times.items())
    for n, t in times.items():
        print(f"| {n} | {n / t / best:.2f} |")
    if options.profile:
        with profile(activities=[ProfilerActivity.CPU]) as record:
            step(shield.scores, x)
        print("\n" + record.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


if __name__ == "__main__":
    main()
