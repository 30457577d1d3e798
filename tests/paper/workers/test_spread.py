"""Units are spread over workers: each is finished once, hard ones first, whatever dies."""

import pytest
import torch
from torch import nn

from multishield.errors import UserError
from paper.workers.spread import Dispatcher, Lost, spread


class Simulated:
    """A crew on a clock of its own: `seconds` of each unit, and what goes wrong: (piece number, units) to an error,
    which comes when that part of the piece is finished."""

    def __init__(self, workers, seconds, trouble=lambda number, units: None, after=0.5):
        self.workers, self.seconds, self.trouble, self.after = workers, seconds, trouble, after
        self.now, self.events, self.begun, self.stopped = 0.0, [], [], []

    def size(self):
        return self.workers

    def begin(self, inputs):
        units, number = list(inputs), len(self.begun)
        self.begun.append(units)
        wrong = self.trouble(number, units)
        half = int(len(units) * self.after)
        if wrong != "hangs":
            middle, end = (self.now + sum(self.seconds[u] for u in units[:n]) for n in (half, len(units)))
            self.events.append((middle, number, [(list(range(half)), units[:half], len(units) - half)]))
            said = [(list(range(half, len(units))), units[half:], 0)]
            self.events += [(end, number, wrong)] if wrong else [(end, number, said), (end, number, None)]
        else:
            self.events.append((self.now, number, []))
        return number

    def news(self, handles, seconds):
        if not self.events:
            return []
        first = min(range(len(self.events)), key=lambda i: self.events[i][0])
        self.now, number, said = self.events.pop(first)
        return [(number, said)]

    def stop(self, handle):
        self.stopped.append(handle)


def dispatch(crew, units, costs=None, sizes=(1, 1024), patience=600.0):
    """Run; returns what was taken, in the order in which it came."""
    taken = []
    take = lambda numbers, value, left, who: (numbers == value or pytest.fail("mixed up"), taken.extend(numbers))  # noqa: E731
    Dispatcher(crew, lambda numbers: numbers, units, take, "image", sizes, costs, patience).run()
    return taken


@pytest.mark.parametrize("workers", [1, 2, 3, 64])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 7), (32, 1024)])
def test_every_unit_is_finished_once(workers, sizes):
    units = list(range(5, 105))
    taken = dispatch(Simulated(workers, dict.fromkeys(units, 1.0)), units, sizes=sizes)
    assert sorted(taken) == units


def test_the_dearest_are_begun_first_and_the_last_pieces_are_small():
    costs = torch.rand(400, generator=torch.Generator().manual_seed(0)).tolist()
    crew = Simulated(4, costs)
    dispatch(crew, range(400), costs)
    begun = [unit for piece in crew.begun for unit in piece]
    assert begun == sorted(range(400), key=lambda i: -costs[i])
    assert len(crew.begun[0]) > 20
    of = [sum(costs[unit] for unit in piece) for piece in crew.begun]
    assert of[0] > 20 * sum(costs) / 400
    assert of[-1] <= sum(costs) / 400


def test_where_there_are_few_each_worker_gets_one_piece_and_all_are_alike():
    costs = [1.0, 100.0] * 30
    crew = Simulated(3, costs)
    dispatch(crew, range(60), costs, sizes=(32, 1024))
    assert [sum(costs[u] for u in piece) for piece in crew.begun] == [1010.0] * 3


def test_a_cluster_of_64_is_busy_to_the_end():
    """Costs as attacks have them: most images fall in a few steps, the robust ones take 1,800 passes."""
    draw = torch.Generator().manual_seed(0)
    robust = torch.rand(50_000, generator=draw) < 0.45
    costs = torch.where(robust, 1800.0, 20 + 400 * torch.rand(50_000, generator=draw) ** 3).tolist()
    for number, guess in ((10_000, costs), (50_000, costs), (50_000, None)):
        crew = Simulated(64, costs)
        dispatch(crew, range(number), guess and guess[:number], sizes=(128, 1024))
        assert sum(costs[:number]) / 64 / crew.now > 0.9
    blind = Simulated(64, costs)
    dispatch(blind, range(10_000), sizes=(32, 1024))
    assert sum(costs[:10_000]) / 64 / blind.now > 0.85, "without a guess at the costs, in smaller pieces"


def test_the_few_that_cost_most_are_not_left_to_one_worker():
    costs = [20_000.0] * 128 + [100.0] * 49_872
    crew = Simulated(64, costs)
    dispatch(crew, range(50_000), costs, sizes=(128, 1024))
    assert sum(costs) / 64 / crew.now > 0.9
    assert len(crew.begun[-1]) < 200


def test_what_was_finished_before_a_worker_died_is_not_done_again():
    trouble = lambda number, units: None if number else RuntimeError("gone")  # noqa: E731
    crew = Simulated(2, dict.fromkeys(range(40), 1.0), trouble)
    taken = dispatch(crew, range(40))
    assert sorted(taken) == list(range(40))
    first, finished = crew.begun[0], len(crew.begun[0]) // 2
    again = [unit for piece in crew.begun[1:] for unit in piece if unit in first]
    assert sorted(again) == first[finished:]


def test_the_image_that_is_to_blame_is_found_and_named():
    trouble = lambda number, units: RuntimeError("boom") if 17 in units else None  # noqa: E731
    crew = Simulated(2, dict.fromkeys(range(40), 1.0), trouble, after=0)
    with pytest.raises(UserError, match=r"^image 17 \(counted from 0\) has failed 3 times on the workers.*: boom; "):
        dispatch(crew, range(40))
    assert [len(piece) for piece in crew.begun if 17 in piece][-1] == 1, "at last it was alone"


def test_a_lost_machine_is_no_fault_of_the_images():
    crew = Simulated(2, dict.fromkeys(range(40), 1.0), lambda number, units: Lost() if number < 9 else None)
    assert sorted(dispatch(crew, range(40))) == list(range(40))


def test_a_sentence_for_the_user_ends_the_run_at_once():
    crew = Simulated(2, dict.fromkeys(range(40), 1.0), lambda number, units: UserError("lower it"))
    with pytest.raises(UserError, match=r"^lower it$"):
        dispatch(crew, range(40))
    assert len(crew.begun) == 2
    assert crew.stopped, "what is under way is stopped"


def test_a_worker_that_hangs_is_killed_and_its_piece_begun_again():
    crew = Simulated(2, dict.fromkeys(range(8), 1.0), lambda number, units: "hangs" if not number else None)
    assert sorted(dispatch(crew, range(8), patience=0.01)) == list(range(8))
    assert crew.stopped[0] == 0


def test_a_piece_that_ends_without_a_word_is_begun_again():
    crew = Simulated(1, dict.fromkeys(range(4), 1.0))
    begin = crew.begin

    def silent(inputs):
        number = begin(inputs)
        if number == 0:
            crew.events = [(0.0, 0, None)]
        return number

    crew.begin = silent
    assert sorted(dispatch(crew, range(4))) == list(range(4))
    assert len(crew.begun) > 1


def test_in_this_process_pieces_come_one_after_the_other(monkeypatch):
    monkeypatch.setenv("MULTISHIELD_WORKERS", "1")
    seen, taken, left = [], [], []

    def work(model, chosen, emit):
        seen.append(chosen)
        emit([0], "first", len(chosen) - 1)
        emit(range(1, len(chosen)), "rest", 0)

    spread(
        work,
        nn.Identity(),
        list,
        range(10, 17),
        lambda n, v, todo, who: (taken.extend(n), left.append(todo)),
        at_most=3,
    )
    assert seen == [[10, 11, 12], [13, 14, 15], [16]]
    assert taken == list(range(10, 17))
    assert left[-1] == 0
    assert left == sorted(left, reverse=True)
