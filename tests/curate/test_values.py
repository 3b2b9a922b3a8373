import json
from decimal import Decimal

import numpy as np
import pytest

from camelid.curate.values import MAX_LEVELS, problem_of, without_nan


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [None, True, 7, -1.5, "字", "\ud800", [1, [2, {"a": None}]], {"": ()}, 10**4000, np.float64(2), nested(MAX_LEVELS)],
)
def test_a_value_that_json_gives_back_has_no_problem(value):
    assert problem_of(value) == ""
    assert json.loads(json.dumps(value, allow_nan=False)) == (value if value != {"": ()} else {"": []})


@pytest.mark.parametrize(
    "value, problem",
    [
        (float("nan"), "x is NaN"),
        ({"a": [0, float("-inf")]}, "x.a[1] is infinite, or beyond the largest floating-point number"),
        ([{1, 2}], "x[0] is of the type set"),
        (b"a", "x is of the type bytes"),
        (np.float32(1.5), "x is of the type float32"),
        ({1: 2, "1": 3}, "x has a key of the type int, not a text"),
        ({"b": {(1, 2): 3}}, "x.b has a key of the type tuple, not a text"),
        ([10**5000], "x[0] is a number of more than 4,200 digits"),
        (Decimal(10**3000), "x is a number of more than 4,200 digits"),
        (nested(MAX_LEVELS + 1), "x[0][0][0][0]... has more than 100 levels of nesting"),
        (nested(5000), "x[0][0][0][0]... has more than 100 levels of nesting"),
    ],
)
def test_what_json_cannot_hold_is_named_with_its_place(value, problem):
    assert problem_of(value, "x") == problem


def test_a_list_in_itself_is_nested_too_deeply():
    circle: list = []
    circle.append(circle)
    assert problem_of(circle, "x").endswith("more than 100 levels of nesting")


def test_nan_is_none_and_all_else_stays():
    nan = float("nan")
    assert without_nan({"a": [nan, 1.0, {"b": nan}], "c": "nan"}) == {"a": [None, 1.0, {"b": None}], "c": "nan"}
