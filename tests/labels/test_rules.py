from __future__ import annotations

import ast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.labels.rules import parse_rule, target_mask
from galscan.labels.schema import load_schema

NAMES = ["a", "b"]
UNKNOWN = float("nan")


def outcome(text, **values):
    """Evaluate a rule for one object: True, False or None."""
    columns = {k: np.array([v], np.float32) for k, v in values.items()}
    true, false = parse_rule(text, columns).evaluate(columns)
    assert not (true & false).any()
    return True if true[0] else False if false[0] else None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a > 0.5", True),
        ("a > 0.5 and b > 0.5", None),
        ("a < 0.5 and b > 0.5", False),  # false whatever b is
        ("a > 0.5 or b > 0.5", True),  # true whatever b is
        ("a < 0.5 or b > 0.5", None),
        ("not b > 0.5", None),
        ("b == b", None),
        ("b != 1", None),
        ("0.5 < a < 2", True),
        ("0.5 < a < b", None),
        ("2 < a < b", False),
        ("a + b > 0", None),
        ("a / 0 > 1", None),  # infinite is no number to compare with
        ("-a * 2 + 1 <= -(0.4)", True),
        ("(a >= 0.8) and not (a > 0.8)", True),  # 0.8 is the same number in single precision
    ],
)
def test_a_missing_label_is_neither(text, expected):
    assert outcome(text, a=0.8, b=UNKNOWN) is expected


three = st.sampled_from([0.0, 1.0, UNKNOWN])


@given(three, three)
def test_kleene_laws(a, b):
    def law(left, right):
        assert outcome(left, a=a, b=b) is outcome(right, a=a, b=b)

    law("not (a > 0.5 and b > 0.5)", "not a > 0.5 or not b > 0.5")
    law("not (a > 0.5 or b > 0.5)", "not a > 0.5 and not b > 0.5")
    law("a > 0.5 and b > 0.5", "b > 0.5 and a > 0.5")
    law("not not a > b", "a > b")
    law("a > 0.5 or (a > 0.5 and b > 0.5)", "a > 0.5 or a > 0.5 and b > 0.5")


@given(st.lists(st.tuples(three, three), min_size=1, max_size=20))
def test_many_at_once_are_as_one_by_one(rows):
    a, b = np.array(rows).T
    true, false = parse_rule("a > 0.5 and not b > 0.5", NAMES).evaluate({"a": a, "b": b})
    alone = [outcome("a > 0.5 and not b > 0.5", a=x, b=y) for x, y in rows]
    assert [True if t else False if f else None for t, f in zip(true, false, strict=True)] == alone


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "a", "a >", "1 < 2", "a > 'x'", "a > True", "a > 1j", "a > 1e999", "a ** 2 > 1", "a[0] > 1",
        "a.b > 1", "f(a) > 1", "__import__('os').system('true') > 1", "lambda: a > 1", "[x for x in a] > 1", "a in b",
        "a is b", "a > (b > 0)", "a if a > 1 else b", "(a := 1) > 0", "a > 1; b > 1", "a & b", "a > ~b",
        "a > 1 # \0", "a > " + "(" * 500 + "1" + ")" * 500, "a > 1 or " * 600 + "a > 1",
    ],
)  # fmt: skip
def test_nothing_but_a_rule_is_parsed(text):
    with pytest.raises(InputError) as error:
        parse_rule(text, NAMES)
    assert "\n" not in str(error.value)


def test_a_rule_may_stand_on_several_lines():
    assert parse_rule("a > 0\n  and b > 0", NAMES).names == ("a", "b")


def test_the_nearest_label_is_offered():
    with pytest.raises(InputError, match="did you mean 'visible_dust'"):
        parse_rule("visibledust > 0", load_schema("efigi").names)
    with pytest.raises(InputError, match="'b', which is missing"):
        parse_rule("a > b", NAMES).evaluate({"a": np.zeros(2)})


@pytest.mark.parametrize(
    ("text", "impossible"),
    [
        ("a > 2", True),
        ("a > 1", True),
        ("a >= 1", False),
        ("a == 1.5", True),
        ("a < 0", True),
        ("a > 0.8 and a < 0.2", True),
        ("0.8 < a < 0.2", True),
        ("not a > 2", True),
        ("a + b > 1.5", False),
        ("a + b > 2", True),
        ("a - b < -0.99", False),
        ("a > 0.3 and a < 0.4", False),
        ("b == -2", False),
        ("b < -3", True),
        ("a == 0.5 or b > 7", True),
        ("a + b > 1.05 and a + b < 1.15", False),  # true between the constants
        ("b / a > 3 and b / a < 4", False),
        ("a / (b + 4) > 0.9", False),
        ("a / (b + 4) > 1.1", True),
        ("a > 0.5 and 0.5 >= a", True),
        ("a > 0.5 and (b > 0 or a < 0.5)", False),
        ("a * a < 0", True),
        ("not (a >= 0 and b <= 1)", True),
        ("a != 1", False),
    ],
)
def test_impossible_rules(text, impossible):
    rule = parse_rule(text, NAMES)
    ranges = {"a": (0.0, 1.0), "b": (-3.0, 1.0)}
    if impossible:
        with pytest.raises(InputError, match="can never be true"):
            rule.check(ranges)
    else:
        rule.check(ranges)


LABEL = st.sampled_from(["a", "b", "0.25", "1", "-2"])
VALUE = st.recursive(LABEL, lambda x: st.tuples(x, st.sampled_from("+-*/"), x).map(lambda t: "({} {} {})".format(*t)))
CONDITION = st.recursive(
    st.tuples(VALUE, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), VALUE).map(" ".join),
    lambda x: (
        st.tuples(x, st.sampled_from(["and", "or"]), x).map(lambda t: "({} {} {})".format(*t))
        | x.map(lambda t: f"not ({t})")
    ),
    max_leaves=4,
)


@given(text=CONDITION, seed=st.integers(0, 99))
def test_a_rule_that_is_true_of_something_is_never_called_impossible(text, seed):
    if not {"a", "b"} & set(text):
        return
    ranges, random = {"a": (0.0, 1.0), "b": (-3.0, 1.0)}, np.random.default_rng(seed)
    grid = {
        name: random.choice([low, 0.25, high, *random.uniform(low, high, 3)], 200)
        for name, (low, high) in ranges.items()
    }
    rule = parse_rule(text, grid)
    comparisons = [node for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Compare)]
    true_somewhere = [parse_rule(ast.unparse(n), grid).evaluate(grid)[0].any() for n in comparisons if _named(n)]
    if rule.evaluate(grid)[0].any() and all(true_somewhere) and len(true_somewhere) == len(comparisons):
        rule.check(ranges)


def _named(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Name) for n in ast.walk(node))


def test_target_mask():
    columns = {"a": np.array([1, 0, 0.5, np.nan, np.nan], np.float32), "b": np.array([1, 1, 1, 0, np.nan], np.float32)}
    mask = target_mask(parse_rule("a > 0.8", NAMES), parse_rule("a < 0.2 or b == 0", NAMES), columns)
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, [1, 0, np.nan, 0, np.nan])
    with pytest.raises(InputError, match="2 objects are positive and negative"):
        target_mask(parse_rule("a >= 0.5", NAMES), parse_rule("a > 0.2", NAMES), columns)


def test_the_parts_of_a_rule_make_the_rule():
    columns = {"a": np.array([0.0, 0.6, 0.6, np.nan]), "b": np.array([1.0, 1.0, 0.0, 1.0])}
    join, parts = parse_rule("a >= 0.5 and (b > 0.5 or a == 0) and b < 2", columns).operands()
    assert join == "and" and [p.text for p in parts] == ["a >= 0.5", "b > 0.5 or a == 0", "b < 2"]
    assert parts[0].names == ("a",) and parts[1].names == ("a", "b")
    assert parts[1].operands()[0] == "or"
    assert np.logical_and.reduce([p.evaluate(columns)[0] for p in parts]).tolist() == [False, True, False, False]
    alone = parse_rule("not (a > 0 and b > 0)", columns)
    assert alone.operands() == ("", [alone])
