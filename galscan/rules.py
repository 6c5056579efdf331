"""Rules: small conditions over label columns, parsed safely, that turn labels into training targets.

NaN means "not asked": a rule that depends on it is neither true nor false (Kleene's logic).
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from galscan.errors import InputError, nearest

Pair = tuple[np.ndarray, np.ndarray]
"""(true, false): where both are false, it is unknown."""

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
_GRID_LIMIT = 200_000


@dataclass(frozen=True)
class Rule:
    """A condition over label columns. Get one with `parse_rule`."""

    text: str
    names: tuple[str, ...]
    _tree: ast.expr = field(repr=False, compare=False)

    def evaluate(self, columns: Mapping[str, np.ndarray]) -> Pair:
        """Return where the rule is true and where it is false; where it is neither, a label is missing.

        Parameters
        ----------
        columns : mapping of name to ndarray of shape (n,)

        Raises
        ------
        InputError
            If a label that the rule names is not among `columns`.
        """
        for name in self.names:
            if name not in columns:
                raise InputError(
                    f"rule {self.text!r} needs the label '{name}', which is not there{nearest(name, columns)}"
                )
        with np.errstate(all="ignore"):
            return _logic(self._tree, {n: np.asarray(columns[n]) for n in self.names})

    def parts(self) -> tuple[str, list[Rule]]:
        """Return how the rule is joined at the top, ``and``, ``or`` or not at all, and the rules that are joined."""
        if not isinstance(self._tree, ast.BoolOp):
            return "", [self]
        parts = [Rule(ast.unparse(node), tuple(sorted(_names(node))), node) for node in self._tree.values]
        return "and" if isinstance(self._tree.op, ast.And) else "or", parts

    def check(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Refuse a comparison, or a whole rule, that no label value within `ranges` can make true.

        Raises
        ------
        InputError
            If the rule is impossible.
        """
        parts = [n for n in ast.walk(self._tree) if isinstance(n, ast.Compare)]
        for node in [*parts, self._tree]:
            grid = _grid(node, parts, ranges)
            if grid is not None and not _logic(node, grid)[0].any():
                limits = ", ".join(f"{n} is {ranges[n][0]:g}..{ranges[n][1]:g}" for n in sorted(grid))
                raise InputError(f"impossible rule {self.text!r}: {ast.unparse(node)!r} can never be true ({limits})")


def _names(node: ast.expr) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _grid(
    node: ast.expr, comparisons: Iterable[ast.Compare], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, np.ndarray] | None:
    """Return a grid of label values on which a satisfiable rule is true somewhere; None if it would be too big.

    A comparison changes its outcome at the constants in it, so the limits, the constants and the
    points between them stand for all values.
    """
    names = sorted(_names(node))
    points = []
    for name in names:
        low, high = ranges[name]
        cuts = {low, high}
        for part in comparisons:
            nodes: list[Any] = list(ast.walk(part))
            if any(isinstance(n, ast.Name) and n.id == name for n in nodes):
                numbers: list[Any] = [n.value for n in nodes if isinstance(n, ast.Constant)]
                values = {sign * number for number in numbers for sign in (1, -1)}
                cuts |= {v for v in values if low < v < high}
        ordered = sorted(cuts)
        points.append(ordered + [(a + b) / 2 for a, b in itertools.pairwise(ordered)])
    if math.prod(map(len, points)) > _GRID_LIMIT:
        return None
    mesh = np.meshgrid(*points, indexing="ij")
    return {name: values.ravel() for name, values in zip(names, mesh, strict=True)}


def parse_rule(text: str, names: Iterable[str]) -> Rule:
    """Parse a rule: ``and or not``, comparisons, ``+ - * /``, numbers, parentheses and label names. Nothing else.

    Parameters
    ----------
    text : str
    names : iterable of str
        The labels it may name.

    Raises
    ------
    InputError
        If the text is not such a rule, or names an unknown label (the nearest is offered).
    """
    known = set(names)
    if not isinstance(text, str) or not text.strip() or len(text) > 4000:
        raise InputError(f"a rule is a text of 1 to 4000 characters, got {str(text)[:60]!r}")
    try:
        tree = ast.parse(" ".join(text.split()), mode="eval").body
        used = _check_logic(tree, text, known)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"rule {text!r} cannot be read ({getattr(error, 'msg', None) or 'too deep'})") from None
    if not used:
        raise InputError(f"rule {text!r} names no label")
    return Rule(text, tuple(sorted(used)), tree)


def _check_logic(node: ast.expr, text: str, known: set[str]) -> set[str]:
    if isinstance(node, ast.BoolOp):
        return set().union(*(_check_logic(v, text, known) for v in node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _check_logic(node.operand, text, known)
    if isinstance(node, ast.Compare) and all(type(o) in _COMPARE for o in node.ops):
        return set().union(*(_check_number(v, text, known) for v in [node.left, *node.comparators]))
    raise InputError(
        f"rule {text!r}: {ast.unparse(node)!r} is not a condition; "
        "compare labels with < <= > >= == != and join with and, or, not"
    )


def _check_number(node: ast.expr, text: str, known: set[str]) -> set[str]:
    if isinstance(node, ast.Name):
        if node.id not in known:
            raise InputError(f"rule {text!r}: unknown label '{node.id}'{nearest(node.id, known)}")
        return {node.id}
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and _is_number(node.value):
        return set()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _check_number(node.operand, text, known)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _check_number(node.left, text, known) | _check_number(node.right, text, known)
    raise InputError(
        f"rule {text!r}: {ast.unparse(node)!r} is not allowed; use labels, numbers, + - * / and parentheses"
    )


def _is_number(value: float) -> bool:
    return not isinstance(value, bool) and math.isfinite(value)


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
    """Return 1 where `positive` is true, 0 where `negative` is, and NaN where neither is (ambiguous, or not labelled).

    Returns
    -------
    ndarray of float32, shape (n,)

    Raises
    ------
    InputError
        If some object is both.
    """
    yes, no = positive.evaluate(columns)[0], negative.evaluate(columns)[0]
    if both := int((yes & no).sum()):
        raise InputError(
            f"{both} objects are positive and negative at once; "
            f"make {positive.text!r} and {negative.text!r} exclude each other"
        )
    return np.select([yes, no], [1.0, 0.0], np.nan).astype(np.float32)
