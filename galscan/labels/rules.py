"""Rules: conditions over label columns that define training targets, parsed without evaluating code.

NaN means "not asked": a rule that depends on it is neither true nor false (Kleene's three-valued logic).
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from galscan.core.errors import InputError, nearest

Pair = tuple[np.ndarray, np.ndarray]
"""(true, false); unknown where both are false."""

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: np.divide,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A condition over label columns. Created by `parse_rule`."""

    text: str
    names: tuple[str, ...]
    _tree: ast.expr = field(repr=False, compare=False)

    def evaluate(self, columns: Mapping[str, np.ndarray]) -> Pair:
        """Return where the rule is true and where it is false; neither where a label is missing.

        Raises `InputError` if a label of the rule is not among `columns`.

        Parameters
        ----------
        columns : mapping of name to ndarray of shape (n,)
        """
        for name in self.names:
            if name not in columns:
                raise InputError(
                    f"rule {self.text!r} needs the label '{name}', which is missing{nearest(name, columns)}"
                )
        with np.errstate(all="ignore"):
            return _logic(self._tree, {n: np.asarray(columns[n]) for n in self.names})

    def operands(self) -> tuple[str, list[Rule]]:
        """Return the top-level operator, ``and``, ``or`` or ``""``, and its operands as rules."""
        if not isinstance(self._tree, ast.BoolOp):
            return "", [self]
        operands = [Rule(ast.unparse(node), tuple(sorted(_names(node))), node) for node in self._tree.values]
        return "and" if isinstance(self._tree.op, ast.And) else "or", operands

    def check(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Check that the rule, and each comparison in it, can be true for label values within `ranges`.

        Raises `InputError` if the rule is impossible.
        """
        for node in [n for n in ast.walk(self._tree) if isinstance(n, ast.Compare)] + [self._tree]:
            if not _can_be(node, ranges)[0]:
                limits = ", ".join(f"{n} is {ranges[n][0]:g}..{ranges[n][1]:g}" for n in sorted(_names(node)))
                raise InputError(f"impossible rule {self.text!r}: {ast.unparse(node)!r} can never be true ({limits})")


def _names(node: ast.expr) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _can_be(node: Any, ranges: Mapping[str, tuple[float, float]]) -> tuple[bool, bool]:
    """Return whether a condition can be true, and whether it can be false, with labels within `ranges`.

    By interval arithmetic, which is conservative: an impossible outcome may be returned as possible, never the inverse.
    """
    if isinstance(node, ast.UnaryOp):
        true, false = _can_be(node.operand, ranges)
        return false, true
    if isinstance(node, ast.BoolOp):
        joined = isinstance(node.op, ast.And)
        within = _narrowed(node.values, ranges) if joined else ranges
        if within is None:
            return False, True
        parts = [_can_be(part, within) for part in node.values]
        alone = [_can_be(part, ranges) for part in node.values]
        if joined:
            return all(true for true, _ in parts), any(false for _, false in alone)
        return any(true for true, _ in alone), all(false for _, false in alone)
    sides = [node.left, *node.comparators]
    pairs = list(zip(node.ops, sides, sides[1:], strict=False))
    if len(pairs) > 1:
        chain: list[ast.expr] = [ast.Compare(a, [op], [b]) for op, a, b in pairs]
        return _can_be(ast.BoolOp(ast.And(), chain), ranges)
    op, left, right = pairs[0]
    (low, high), (least, most) = _interval(left, ranges), _interval(right, ranges)
    if not math.isfinite(low + high + least + most):
        return True, True
    below, above, same = low < most, high > least, low <= most and high >= least
    fixed = low == high == least == most
    return {
        ast.Lt: (below, high >= least), ast.LtE: (low <= most, above), ast.Gt: (above, low <= most),
        ast.GtE: (high >= least, below), ast.Eq: (same, not fixed), ast.NotEq: (not fixed, same),
    }[type(op)]  # fmt: skip


def _narrowed(
    parts: Iterable[Any], ranges: Mapping[str, tuple[float, float]]
) -> Mapping[str, tuple[float, float]] | None:
    """Return the ranges restricted by all comparisons of a label with a number; None if they are empty."""
    left = dict(ranges)
    for part in parts:
        if not (isinstance(part, ast.Compare) and len(part.ops) == 1):
            continue
        name, other, op = part.left, part.comparators[0], type(part.ops[0])
        if isinstance(other, ast.Name):
            mirrored: dict[type[ast.cmpop], type[ast.cmpop]] = {
                ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE,
            }  # fmt: skip
            name, other, op = other, name, mirrored.get(op, op)
        if not isinstance(name, ast.Name) or _names(other):
            continue
        value = _interval(other, ranges)[0]
        low, high = left[name.id]
        if op in (ast.Gt, ast.GtE, ast.Eq):
            low = max(low, math.nextafter(value, math.inf) if op is ast.Gt else value)
        if op in (ast.Lt, ast.LtE, ast.Eq):
            high = min(high, math.nextafter(value, -math.inf) if op is ast.Lt else value)
        if low > high:
            return None
        left[name.id] = low, high
    return left


def _interval(node: Any, ranges: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Return the minimum and maximum of an expression; infinite if a divisor may be zero."""
    if isinstance(node, ast.Name):
        return ranges[node.id]
    if isinstance(node, ast.UnaryOp):
        low, high = _interval(node.operand, ranges)
        return (-high, -low) if isinstance(node.op, ast.USub) else (low, high)
    if isinstance(node, ast.BinOp):
        (low, high), (least, most) = _interval(node.left, ranges), _interval(node.right, ranges)
        if isinstance(node.op, ast.Sub):
            least, most = -most, -least
        if isinstance(node.op, ast.Div):
            if least <= 0 <= most:
                return -math.inf, math.inf
            least, most = 1 / most, 1 / least
        if isinstance(node.op, ast.Add | ast.Sub):
            return low + least, high + most
        ends = [a * b for a in (low, high) for b in (least, most)]
        return min(ends), max(ends)
    return node.value, node.value


def parse_rule(text: str, names: Iterable[str]) -> Rule:
    """Parse a rule, which may contain ``and or not``, comparisons, ``+ - * /``, numbers, parentheses and label names.

    Raises `InputError` if the text is not a valid rule, or uses an unknown label (the message has the nearest one).

    Parameters
    ----------
    text : str
    names : iterable of str
        The labels it may use.
    """
    known = set(names)
    if not isinstance(text, str) or not text.strip() or len(text) > 4000:
        raise InputError(f"a rule must be a string of 1 to 4000 characters, got {str(text)[:60]!r}")
    try:
        tree = ast.parse(" ".join(text.split()), mode="eval").body
        _check_condition(tree, text)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "msg", None) or "too deeply nested"
        raise InputError(f"rule {text!r} cannot be parsed ({reason})") from None
    if not (used := sorted(_names(tree))):
        raise InputError(f"rule {text!r} contains no label")
    if unknown := [name for name in used if name not in known]:
        raise InputError(f"rule {text!r}: unknown label '{unknown[0]}'{nearest(unknown[0], known)}")
    return Rule(text, tuple(used), tree)


def _check_condition(node: ast.expr, text: str) -> None:
    if isinstance(node, ast.BoolOp):
        operands = node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        operands = [node.operand]
    elif isinstance(node, ast.Compare) and all(type(o) in _COMPARE for o in node.ops):
        for side in (node.left, *node.comparators):
            _check_value(side, text)
        return
    else:
        raise InputError(
            f"rule {text!r}: {ast.unparse(node)!r} is not a condition; "
            "compare labels with < <= > >= == != and join with and, or, not"
        )
    for operand in operands:
        _check_condition(operand, text)


def _check_value(node: ast.expr, text: str) -> None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        _check_value(node.operand, text)
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        _check_value(node.left, text)
        _check_value(node.right, text)
    elif not isinstance(node, ast.Name) and not (isinstance(node, ast.Constant) and _is_number(node.value)):
        raise InputError(
            f"rule {text!r}: {ast.unparse(node)!r} is not allowed; use labels, numbers, + - * / and parentheses"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _logic(node: Any, columns: Mapping[str, np.ndarray]) -> Pair:
    if isinstance(node, ast.BoolOp):
        parts = [_logic(v, columns) for v in node.values]
        trues, falses = [t for t, _ in parts], [f for _, f in parts]
        if isinstance(node.op, ast.And):
            return np.logical_and.reduce(trues), np.logical_or.reduce(falses)
        return np.logical_or.reduce(trues), np.logical_and.reduce(falses)
    if isinstance(node, ast.UnaryOp):
        true, false = _logic(node.operand, columns)
        return false, true
    values = [_number(v, columns) for v in [node.left, *node.comparators]]
    shape = next(iter(columns.values())).shape
    true, false = np.ones(shape, bool), np.zeros(shape, bool)
    for op, left, right in zip(node.ops, values, values[1:], strict=False):
        known = np.isfinite(left) & np.isfinite(right)
        outcome = _COMPARE[type(op)](left, right)
        true, false = true & known & outcome, false | (known & ~np.asarray(outcome))
    return true, false


def _number(node: Any, columns: Mapping[str, np.ndarray]) -> Any:
    if isinstance(node, ast.Name):
        return columns[node.id]
    if isinstance(node, ast.UnaryOp):
        value = _number(node.operand, columns)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_number(node.left, columns), _number(node.right, columns))
    return node.value


def target_mask(positive: Rule, negative: Rule, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return 1 where `positive` is true, 0 where `negative` is, and NaN elsewhere (ambiguous or not labelled).

    Raises `InputError` if an object is both.

    Returns
    -------
    ndarray of float32, shape (n,)
    """
    is_positive, is_negative = positive.evaluate(columns)[0], negative.evaluate(columns)[0]
    if both := int((is_positive & is_negative).sum()):
        raise InputError(
            f"{both} objects are positive and negative at once; "
            f"make {positive.text!r} and {negative.text!r} exclude each other"
        )
    return np.select([is_positive, is_negative], [1.0, 0.0], np.nan).astype(np.float32)
