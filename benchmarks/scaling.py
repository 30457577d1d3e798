"""What workers bring: images per second of the attacks on both parts and of joint, here, by one worker and by two.

Run it in a project whose pipeline has run, with the extra `cluster` and nothing else on the machine:

    python benchmarks/scaling.py CLASSIFIER [--images N] [--workers 1 2]   # of the validation images

Every worker has one thread, and so has this process. The start of Ray and the first call of a worker are not counted:
an attack before warms up. Processes apart, each with its share of the images and nothing in common, say what the cores
can do together. The images must be the same bytes each time; seconds are of this machine, and only their
ratio means something. It prints a Markdown table, then what the plan of 50,000 images takes of the driver's memory, and
how busy 64 workers are with the costs that were measured, on a clock that is simulated.
"""

import argparse
import os

from multishield.params import Params
from multishield.pipeline import arithmetic

arithmetic.choose(Params.load().arithmetic)
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import hashlib
import time
import tracemalloc
from dataclasses import dataclass

import torch

from multishield.attacks.loop.result import AttackedImages
from multishield.attacks.threat_model import Ball
from multishield.data import splits
from multishield.evaluation.portfolio import Attacker
from multishield.evaluation.scenarios import load_shield
from multishield.storage.checkpoints import kept_in
from multishield.workers import spread
from multishield.workers.setting import Workers


@dataclass(frozen=True)
class OfRay(Workers):
    """Workers of Ray even where there is one."""

    here = False


class Clock:
    """A crew of the dispatcher (see `spread.Crew`) whose pieces take the sum of their images' costs."""

    def __init__(self, workers: int, costs: list[float]):
        self.workers, self.costs, self.now, self.ends, self.pieces = workers, costs, 0.0, {}, 0

    def size(self) -> int:
        return self.workers

    def begin(self, inputs):
        self.pieces += 1
        self.ends[self.pieces] = self.now + sum(self.costs[i] for i in inputs), len(inputs)
        return self.pieces

    def news(self, handles, seconds):
        piece = min(self.ends, key=lambda p: self.ends[p])
        self.now, size = self.ends.pop(piece)
        return [(piece, [(range(size), None, 0)]), (piece, None)]

    def stop(self, handle):
        pass


def attack(attacker: Attacker, shield, data) -> tuple[AttackedImages, float]:
    """The joint attack from attacks on both parts, and the seconds of all three."""
    started = time.perf_counter()
    with kept_in(None):
        found = attacker.joint(shield, data, tuple(attacker.parts(shield, data).values()))
    return found, time.perf_counter() - started


def everything(name: str, images: int):
    """The attacker, the shield and the images."""
    params = Params.load()
    attacker = Attacker(name, params.adaptive, Ball(**params.threat_model.model_dump()), params.seed)
    return attacker, load_shield(name, params.multishield.tolerance), splits.load_split("validation")[:images]


def alone(part: int, parts: int, name: str, images: int, ready) -> None:
    """A process that attacks every so many of the images, and knows nothing of the others but when all begin."""
    torch.set_num_threads(1)
    attacker, shield, data = everything(name, images)
    attack(attacker, shield, data[:2])
    ready.wait()
    attack(attacker, shield, data[part::parts])


def apart(parts: int, name: str, images: int) -> float:
    """Seconds of so many processes without workers: what the machine's cores can do together."""
    context = torch.multiprocessing.get_context("spawn")
    ready = context.Barrier(parts + 1)
    running = [context.Process(target=alone, args=(i, parts, name, images, ready)) for i in range(parts)]
    for process in running:
        process.start()
    ready.wait()
    started = time.perf_counter()
    for process in running:
        process.join()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("classifier")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    attacker, shield, data = everything(options.classifier, options.images)
    print("| workers | images per second | against this process | the same bytes |\n|---|---:|---:|---|")
    first = None
    for workers in (Workers(), *(OfRay(count=count) for count in options.workers)):
        spread.wanted = lambda workers=workers: workers
        attack(attacker, shield, data[: 2 * max(options.workers)])
        found, seconds = attack(attacker, shield, data)
        digest, speed = hashlib.sha256(found.images.numpy().tobytes()).hexdigest(), len(data) / seconds
        first = first or (digest, speed)
        who = "this process" if workers.here else f"{workers.count} of Ray"
        print(f"| {who} | {speed:.2f} | {speed / first[1]:.2f} | {digest == first[0]} |", flush=True)
    for parts in [n for n in options.workers if n > 1]:
        speed = len(data) / apart(parts, options.classifier, options.images)
        print(f"| none, {parts} processes apart | {speed:.2f} | {speed / first[1]:.2f} | |", flush=True)
    many = 50_000
    costs = (found.forwards + found.backwards).float()[torch.randint(len(found.images), (many,))].tolist()
    tracemalloc.start()
    busy, before = {}, tracemalloc.get_traced_memory()[0]
    for guess, least, what in ((costs, 128, "with their costs known"), (None, 32, "without a guess")):
        clock = Clock(64, costs)
        spread.Dispatcher(clock, list, range(many), lambda *a: None, "image", (least, 1024), guess, 600).run()
        busy[what] = sum(costs) / 64 / clock.now
    peak = tracemalloc.get_traced_memory()[1] - before
    print(f"\nThe plan of {many} images: at most {peak / 1e6:.0f} MB of the driver's memory, the images not among it.")
    print("64 workers, of the ideal time: " + ", ".join(f"{share:.0%} {what}" for what, share in busy.items()))


if __name__ == "__main__":
    main()
