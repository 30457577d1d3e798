"""What workers bring: images per second of the attacks on both parts and of joint, by a process, one worker and two.

Run it in a project whose pipeline has run, with the extra `cluster` and nothing else on the machine:

    python benchmarks/scaling.py CLASSIFIER [--images N] [--split validation] [--workers 1 2]

Every worker has one thread, and so has every process. The start of Ray and the first call of a worker are not counted:
an attack before warms up. Processes apart, each with its share of the images and nothing in common, say what the cores
can do together. The images must be the same bytes each time; seconds are of this machine, and only their
ratio means something. It prints a Markdown table, then what the plan of 50,000 images takes of the driver's memory, and
how busy 64 workers are with the costs that were measured, on a clock that is simulated.
"""

import argparse
import os

from paper.params import Params
from paper.pipeline import arithmetic

arithmetic.choose(Params.load().arithmetic)
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import hashlib
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np
import torch

from multishield.attacks.resumable import AT_LEAST
from multishield.attacks.threat_model import Ball
from multishield.images import AttackedImages
from multishield.portfolio import Attacker
from multishield.resume import kept_in
from paper.data import splits
from paper.stages.baseline import load_shield
from paper.workers import spread
from paper.workers.setting import Workers


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


def everything(name: str, images: int, split: str):
    """The attacker, the shield and the images."""
    params = Params.load()
    attacker = Attacker(name, params.adaptive, Ball(**params.threat_model.model_dump()), params.seed)
    return attacker, load_shield(name, params.multishield.tolerance), splits.load_split(split)[:images]


def alone(part: int, parts: int, asked: tuple, ready, found) -> None:
    """A process that attacks every so many of the images, and knows nothing of the others but when all begin."""
    torch.set_num_threads(1)
    attacker, shield, data = everything(*asked)
    attack(attacker, shield, data[:2])
    ready.wait()
    found.put((part, attack(attacker, shield, data[part::parts])[0].images.numpy()))


def apart(parts: int, asked: tuple) -> tuple[float, str]:
    """Seconds of so many processes without workers, which is what the cores can do together, and a digest of what they
    have made. asked: what `everything` takes."""
    context = torch.multiprocessing.get_context("spawn")
    ready, found = context.Barrier(parts + 1), context.Queue()
    running = [context.Process(target=alone, args=(i, parts, asked, ready, found)) for i in range(parts)]
    for process in running:
        process.start()
    ready.wait()
    started = time.perf_counter()
    made = dict(found.get() for _ in running)
    seconds = time.perf_counter() - started
    for process in running:
        process.join()
    images = np.empty((sum(map(len, made.values())), *made[0].shape[1:]), made[0].dtype)
    for part, of in made.items():
        images[part::parts] = of
    return seconds, digest(images)


def digest(images: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("classifier")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--split", default="validation", choices=("train", "validation", "evaluation"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    asked = options.classifier, options.images, options.split
    attacker, shield, data = everything(*asked)
    print("| who | images per second | against one process | the same bytes |\n|---|---:|---:|---|")
    first = None
    for parts in sorted({1, *options.workers}):
        seconds, made = apart(parts, asked)
        first = first or (seconds, made)
        who = f"{parts} process{'es apart' if parts > 1 else ''}, no workers"
        print(f"| {who} | {len(data) / seconds:.2f} | {first[0] / seconds:.2f} | {made == first[1]} |", flush=True)
    for count in options.workers:
        spread.wanted = lambda count=count: OfRay(count=count)
        attack(attacker, shield, data[: 2 * max(options.workers)])
        found, seconds = attack(attacker, shield, data)
        speed, same = f"{len(data) / seconds:.2f} | {first[0] / seconds:.2f}", digest(found.images.numpy()) == first[1]
        print(f"| {count} worker{'s' if count > 1 else ''} of Ray | {speed} | {same} |", flush=True)
    many = 50_000
    costs = (found.forwards + found.backwards).float()[torch.randint(len(found.images), (many,))].tolist()
    tracemalloc.start()
    busy, before = {}, tracemalloc.get_traced_memory()[0]
    for guess, what in ((costs, "with their costs known"), (None, "without a guess")):
        clock = Clock(64, costs)
        spread.Dispatcher(clock, list, range(many), lambda *a: None, "image", (AT_LEAST, 1024), guess, 600).run()
        busy[what] = sum(costs) / 64 / clock.now
    peak = tracemalloc.get_traced_memory()[1] - before
    print(f"\nThe plan of {many} images: at most {peak / 1e6:.0f} MB of the driver's memory, the images not among it.")
    print("64 workers, of the ideal time: " + ", ".join(f"{share:.0%} {what}" for what, share in busy.items()))


if __name__ == "__main__":
    main()
