"""The policy guard: filters and weighers of other packages whose exceptions and invalid results name the policy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nodestate.errors import PolicyError
from nodestate.scheduling.fleet import OutstandingClaims
from nodestate.scheduling.selection import Selector
from nodestate.scheduling.selection.filters import Filter
from nodestate.scheduling.selection.plugins import own
from nodestate.scheduling.selection.weighers import Weigher
from tests.scheduling.fleets import asked, chosen, fleet_of, host

NODES = 3


def selector_with(filter_: Filter | None = None, weigher: Weigher | None = None) -> Selector:
    """A selector over three nodes, with the policies of nodestate and one of another package."""
    policies = own()
    if filter_ is not None:
        policies.filters["awake"] = filter_
    if weigher is not None:
        policies.weighers["roomy"] = weigher
    return Selector(fleet_of(*(host(f"n{number}") for number in range(NODES))), policies, 1)


def awake(*_: object) -> bool:
    raise ZeroDivisionError("by zero")


class Roomy:
    """A weigher that is an object and no function."""

    def __call__(self, *_: object) -> float:
        return {}["nowhere"]  # type: ignore[no-any-return]


ASK: list[Callable[[Selector], object]] = [
    lambda selector: selector.best(asked()),
    lambda selector: selector.explain(asked()),
    lambda selector: selector.choices(asked()),
]


@pytest.mark.parametrize("ask", [*ASK, lambda selector: selector.remaining(asked())])
def test_error_of_a_filter_names_the_filter_its_function_and_the_cause(ask: Callable[[Selector], object]) -> None:
    """Regression: the traceback came from within nodestate, so the error looked like a fault of nodestate."""
    with pytest.raises(PolicyError) as raised:
        ask(selector_with(awake))
    assert str(raised.value) == f"filter 'awake' ({__name__}:awake) failed: ZeroDivisionError('by zero')"
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert (raised.value.policy, raised.value.place) == ("awake", f"{__name__}:awake")
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # noqa: S301 - our own


@pytest.mark.parametrize("ask", ASK)
def test_error_of_a_weigher_names_the_weigher_and_its_class(ask: Callable[[Selector], object]) -> None:
    """The weigher here is an object, which has no name of its own as a function has."""
    with pytest.raises(PolicyError) as raised:
        ask(selector_with(weigher=Weigher(Roomy())))
    assert str(raised.value) == f"weigher 'roomy' ({__name__}:Roomy) failed: KeyError('nowhere')"


@pytest.mark.parametrize(
    ("gave", "told"),
    [
        (None, "a NoneType"),
        (1, "a int"),
        ([True] * NODES, "a list"),
        (np.ones(NODES), "an array of float64, shape (3,)"),
        (np.ones(NODES + 1, np.bool_), "an array of bool, shape (4,)"),
        (np.ones((NODES, 1), np.bool_), "an array of bool, shape (3, 1)"),
    ],
)
def test_filter_that_returns_no_flags_is_refused(gave: Any, told: str) -> None:
    """A number or a list would be taken for an index of rows."""
    with pytest.raises(PolicyError, match="'awake'") as raised:
        selector_with(lambda *_: gave).best(asked())
    assert raised.value.reason == f"returned {told}; want a bool, or an array of 3 of them"


@pytest.mark.parametrize("gave", [True, np.True_, np.array(True), np.array([True, False, False])])
def test_filter_may_return_one_flag_for_all_rows_or_flags_of_numpy(gave: Any) -> None:
    """A filter that holds for the whole cell need not build an array."""
    assert "n0" in chosen(selector_with(lambda *_: gave), asked(8, count=3))


@pytest.mark.parametrize(
    ("gave", "told"),
    [
        (None, "returned a NoneType; want a number, or an array of 3 of them"),
        ("much", "returned a str; want a number, or an array of 3 of them"),
        ([0.5] * NODES, "returned a list; want a number, or an array of 3 of them"),
        (1j, "returned a complex; want a number, or an array of 3 of them"),
        (np.ones(NODES - 1), "returned an array of float64, shape (2,); want a number, or an array of 3 of them"),
        (np.array(["a"] * NODES), "returned an array of <U1, shape (3,); want a number, or an array of 3 of them"),
        (80.0, "returned weights from 80 to 80; want 0 to 1"),
        (np.array([0.0, -0.5, 1.0]), "returned weights from -0.5 to 1; want 0 to 1"),
        (np.array([0.0, np.nan, 1.0]), "returned weights from nan to nan; want 0 to 1"),
    ],
)
def test_weigher_that_returns_no_numbers_from_0_to_1_is_refused(gave: Any, told: str) -> None:
    """A larger weight would outweigh all other weighers without a visible error."""
    with pytest.raises(PolicyError, match="'roomy'") as raised:
        selector_with(weigher=Weigher(lambda *_: gave)).best(asked())
    assert raised.value.reason == told


@pytest.mark.parametrize("gave", [0, 1, True, 0.5, np.float32(1.0), np.array([0, 1, 1]), np.array([True] * NODES)])
def test_weigher_may_return_any_number_of_python_or_numpy(gave: Any) -> None:
    """The author of a weigher should not have to convert an integer or a flag."""
    assert chosen(selector_with(weigher=Weigher(lambda *_: gave)), asked()) != [None]


def test_range_of_weights_is_not_checked_for_single_rows_but_their_shape_is() -> None:
    """A check of the range would be a large part of the cost of one row. The shape is checked, as later steps rely on
    it.
    """
    weights: list[Any] = [0.5]
    nodes = [host(f"n{number}") for number in range(32)]
    policies = own()
    policies.weighers["roomy"] = Weigher(lambda *_: weights[0])
    selector = Selector(fleet_of(*nodes), policies, 1)
    selector.best(asked())
    weights[0] = 2.0
    selector.fleet.overlay(0, OutstandingClaims({"VCPU": 1}))
    assert selector.best(asked()) == [0]
    weights[0] = np.ones(2)
    selector.fleet.overlay(0, OutstandingClaims({"VCPU": 2}))
    with pytest.raises(PolicyError, match="an array of 1 of them"):
        selector.best(asked())
