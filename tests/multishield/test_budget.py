"""The strength of an evaluation is checked when it is made."""

import pytest

from multishield import Budget
from multishield.budget import Joint, Paper, Square


def test_a_budget_has_strong_defaults_and_takes_changes():
    budget = Budget(joint=Joint(restarts=3))
    assert (budget.joint.targets, budget.joint.steps, budget.joint.restarts) == (5, 100, 3)
    assert budget.paper == Paper(100)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Paper(steps=4), "steps is 4; give a whole number of at least 5"),
        (lambda: Square(queries=2.5), "queries is 2.5; give a whole number of at least 1"),
        (lambda: Joint(targets=True), "targets is True; give a whole number of at least 1"),
        (lambda: Budget(joint=9), r"joint is 9; give a Joint\(\.\.\.\)"),
        (lambda: Budget(joint={"steps": 0}), "steps is 0; give a whole number of at least 1"),
    ],
)
def test_a_value_out_of_range_is_named(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
