"""Countdown: reach a target with the four operations, using each number once."""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Final

from rlt_trainer.errors import BadData
from rlt_trainer.evaluate.boxed import last_boxed

__all__ = ["solves"]

LONGEST: Final = 300  # characters of an expression; six numbers need some 40
_OPERATIONS: Final[dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SIGNS: Final = {"×": "*", "·": "*", "÷": "/", "−": "-", r"\times": "*", r"\cdot": "*", r"\div": "/", "$": ""}
_NUMBERS: Final = re.compile(r"\[?\s*(\d+(?:[\s,]+\d+)+)\s*\]?\s*=\s*(-?\d+)\s*")


def solves(given: str, right: str) -> bool:
    """Whether an expression uses each number once and gives the target.

    Args:
        given: an expression, alone or with `= target`, perhaps the last line of a text, or boxed in it.
        right: such an expression, or the numbers and the target: `44 19 35 = 98`.

    Raises:
        BadData: `right` is neither.
    """
    numbers, target = _asked(right)
    sides = _sides(given)
    if not 1 <= len(sides) <= 2:  # a chain of guesses is no answer
        return False
    values = [_value(side) for side in sides]
    used = [_numbers(side) for side in sides]
    return numbers in used and all(value == target for value in values)


def _asked(right: str) -> tuple[Counter[int], Fraction]:
    if told := _NUMBERS.fullmatch(right.strip()):
        return Counter(map(int, re.findall(r"\d+", told[1]))), Fraction(told[2])
    sides = _sides(right)
    target = _value(sides[0])
    numbers = _numbers(sides[0])
    if target is None or numbers.total() < 2 or any(_value(side) != target for side in sides):
        raise BadData(f"want an expression, or numbers and a target such as `44 19 35 = 98`, not {right!r}")
    return numbers, target


def _sides(text: str) -> list[ast.expr | None]:
    """The two sides of an equation, or an expression; None for what is none."""
    lines = (last_boxed(text) or text).strip().splitlines() or [""]
    line = lines[-1].strip().rstrip(".")
    for sign, plain in _SIGNS.items():
        line = line.replace(sign, plain)
    return [_parsed(side.strip()) for side in line.split("=")]


def _parsed(text: str) -> ast.expr | None:
    if len(text) > LONGEST or not re.fullmatch(r"[\d\s+\-*/()]+", text):
        return None
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _numbers(node: ast.expr | None) -> Counter[int]:
    return Counter(part.value for part in ast.walk(node) if _is_number(part)) if node else Counter()  # type: ignore[attr-defined]  # _is_number


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _value(node: ast.expr | None) -> Fraction | None:
    """Exactly; None for anything but whole numbers and the four operations, and for a division by zero."""
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            value = _value(inner)
            return None if value is None else -value
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATIONS:
            one, other = _value(left), _value(right)
            if one is None or other is None or (isinstance(sign, ast.Div) and other == 0):
                return None
            return _OPERATIONS[type(sign)](one, other)
    return None
