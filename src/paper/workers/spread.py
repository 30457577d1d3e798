"""Units of work, spread over workers: hard ones first, nothing lost, what fails is told by name.

A unit is an image, a batch or a block, named by its number; what becomes of it depends on it alone. So it does not
matter who computes it, beside which others, or how often it was begun before.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from multishield.errors import UserError
from multishield.progress import aside
from paper.workers.setting import wanted

# Called with the places (in what was picked) of units that are finished, what became of them, and how much is left of
# this piece, in any measure.
Emit = Callable[[Sequence[int], object, float], None]
# Computes all that was picked, and emits it.
Work = Callable[[nn.Module, object, Emit], object]
# Called with numbers of units that are finished, what became of them, how much is left of all, and who is at work.
Take = Callable[[list[int], object, float, str], None]
# A unit that has failed as often is given up: by then it has been computed alone.
TRIES = 3
# A piece's part of what is left for each worker: a smaller one makes more pieces, each with a slow end of its own.
SHARE = 0.75


class Crew(Protocol):
    """Workers of some engine. A handle names a piece of work that is under way."""

    def size(self) -> int:
        """How many pieces are computed at once, now."""

    def begin(self, inputs: object) -> object:
        """Start on a piece; returns its handle."""

    def news(self, handles: list, seconds: float) -> list[tuple[object, list | BaseException | None]]:
        """Wait for some: of a handle a list of what was emitted (empty: a sign of life), None at its end, or what it
        died of: `Lost` where the piece is not to blame."""

    def stop(self, handle: object) -> None:
        """Kill a piece."""


class Lost(Exception):
    """A worker is gone with its machine; the piece is begun again elsewhere, as often as that happens."""


@dataclass
class _Piece:
    """Units that one worker computes, and what is known of them."""

    units: list[int]
    unfinished: set[int] = field(default_factory=set)
    left: float | None = None
    heard: float | None = None  # nothing before it has begun: it may wait for a worker

    def __post_init__(self):
        self.unfinished = set(self.units)


def spread(
    work: Work,
    model: nn.Module,
    pick: Callable[[list[int]], object],
    units: Sequence[int],
    take: Take,
    *,
    what: str = "image",
    at_least: int = 1,
    at_most: int = 1024,
    costs: Sequence[float] | None = None,
) -> None:
    """Compute units, in this process or by the workers that are wanted (see `wanted`).

    Args:
        work: of a model and of what was picked; on another machine it must be importable there.
        model: sent once to each worker, onto its device.
        pick: what `work` needs of some units. It is called here, as late as possible: not all is in memory at once.
        units: numbers. what: a unit is called in messages.
        at_least, at_most: a piece costs at least what so many average units do, and has at most so many. Where there
            are not two such pieces for each worker, each gets one, and all are alike.
        costs: of each unit, known or guessed; the dearest are begun first.

    Raises:
        UserError: one was raised by `work`; or a unit has failed three times; or there are no such workers.
    """
    workers, units = wanted(), list(units)
    if workers.here or not units:
        _here(work, model, pick, units, take, at_most)
        return
    from paper.workers.cluster import crew  # Ray is needed, and imported, here alone

    found = Dispatcher(
        crew(workers, work, model), pick, units, take, what, (at_least, at_most), costs, workers.patience
    )
    with aside():  # Ray's own words on what has died
        found.run()


def _here(work: Work, model: nn.Module, pick, units: list[int], take: Take, at_most: int) -> None:
    """Compute units in this process, piece by piece."""
    each = None  # what is left of a unit at its beginning, as the first piece says
    for start in range(0, len(units), at_most):
        piece = units[start : start + at_most]
        later = len(units) - start - len(piece)

        def told(places, value, left, piece=piece, later=later) -> None:
            nonlocal each
            each = left / len(piece) if each is None else each
            take([piece[p] for p in places], value, left + each * later, "")

        work(model, pick(piece), told)


class Dispatcher:
    """Hands out pieces until every unit is finished. Args: see `spread`; `sizes` are at_least and at_most."""

    def __init__(self, crew: Crew, pick, units, take: Take, what: str, sizes: tuple[int, int], costs, patience: float):
        costs = [1.0] * len(units) if costs is None else [max(cost, 1e-9) for cost in costs]
        self.cost = dict(zip(units, costs, strict=True))
        ordered, size = sorted(units, key=lambda unit: -self.cost[unit]), crew.size()
        self.least, self.at_most = sizes[0] * sum(costs) / len(units), sizes[1]
        if len(units) < 2 * sizes[0] * size:
            ordered, self.least = [unit for i in range(size) for unit in ordered[i::size]], math.inf
            self.at_most = min(self.at_most, math.ceil(len(units) / size))
        self.waiting = deque(ordered)
        self.crew, self.pick, self.take, self.what, self.patience = crew, pick, take, what, patience
        self.again: deque[list[int]] = deque()
        self.running: dict[object, _Piece] = {}
        self.failures = dict.fromkeys(units, 0)
        self.begun, self.work_begun = 0, 0.0  # units, and what they had before them when they were

    def run(self) -> None:
        """Work until nothing is left; what is under way is stopped where that ends early."""
        try:
            while self.waiting or self.again or self.running:
                self._begin()
                for handle, said in self.crew.news(list(self.running), 1.0):
                    self._hear(handle, said)
                self._stop_what_hangs()
        finally:
            for handle in self.running:
                self.crew.stop(handle)

    def _begin(self) -> None:
        size = self.crew.size()
        while (self.waiting or self.again) and len(self.running) < size:
            units = self.again.popleft() if self.again else self._next_piece(size)
            self.running[self.crew.begin(self.pick(units))] = _Piece(units)

    def _next_piece(self, size: int) -> list[int]:
        """Of what is left `SHARE` of a worker's part, by cost: small pieces at the end. One alone takes all it may."""
        left = sum(self.cost[unit] for unit in self.waiting)
        share, units, cost = max(self.least, left * SHARE / size if size > 1 else math.inf), [], 0.0
        while self.waiting and len(units) < self.at_most and (not units or cost + self.cost[self.waiting[0]] <= share):
            units.append(self.waiting.popleft())
            cost += self.cost[units[-1]]
        return units

    def _hear(self, handle: object, said: list | BaseException | None) -> None:
        piece = self.running[handle]
        piece.heard = time.monotonic()
        if isinstance(said, BaseException):
            del self.running[handle]
            self._failed(piece, said)
        elif said is None:
            del self.running[handle]
            if piece.unfinished:
                self._failed(piece, RuntimeError(f"it ended without a word on {len(piece.unfinished)} of them"))
        else:
            for places, value, left in said:
                self._finished(piece, [piece.units[p] for p in places], value, left)

    def _finished(self, piece: _Piece, units: list[int], value, left: float) -> None:
        if piece.left is None:
            self.begun += len(piece.units)
            self.work_begun += left
        piece.left = left
        piece.unfinished -= set(units)
        alive = len(self.running)
        self.take(units, value, self._left(), f"{alive} worker{'s' if alive > 1 else ''}")

    def _left(self) -> float:
        """What is left of all: of pieces that have not begun as much as the others had, on average."""
        each = self.work_begun / max(self.begun, 1)
        unknown = len(self.waiting) + sum(map(len, self.again))
        unknown += sum(len(p.units) for p in self.running.values() if p.left is None)
        return sum(p.left or 0.0 for p in self.running.values()) + each * unknown

    def _failed(self, piece: _Piece, error: BaseException) -> None:
        """Begin again what is unfinished: in halves, then one by one, so that the one that is to blame is found."""
        if isinstance(error, UserError):
            raise error
        units = [unit for unit in piece.units if unit in piece.unfinished]
        if isinstance(error, Lost):
            self.again.append(units)
            return
        for unit in units:
            self.failures[unit] += 1
        times = max((self.failures[unit] for unit in units), default=0)
        if times >= TRIES:
            worst = next(unit for unit in units if self.failures[unit] == times)
            raise UserError(
                f"{self.what} {worst} (counted from 0) has failed {times} times on the workers, at last with: {error}; "
                "what is finished is kept, the same command goes on there"
            ) from None
        size = 1 if times == TRIES - 1 else math.ceil(len(units) / 2)
        self.again.extend(units[i : i + size] for i in range(0, len(units), max(size, 1)))

    def _stop_what_hangs(self) -> None:
        late = time.monotonic() - self.patience
        for handle, piece in list(self.running.items()):
            if piece.heard is not None and piece.heard < late:
                del self.running[handle]
                self.crew.stop(handle)
                self._failed(piece, TimeoutError(f"no sign of life for {self.patience:g} s"))
