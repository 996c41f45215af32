"""Users' own constraints and terms of the split problem, as cvxpy expressions in a configuration.

    constraints: ["granted * latency <= 0.8 * local_latency"]
    terms:       ["-0.5 * max(latency)"]

Constraints hold for every plan; terms, in seconds, are maximised together with the objective. A
rule is one expression over `split` (the decision, steps on the own device), the numbers in `FACTS`,
the shorthands in `SHORTHANDS` and the functions in `FUNCTIONS`, which are cvxpy's of the same names
(`cp.max` is read as `max`). Operators work user by user, as NumPy's do. A text is parsed, never
executed as Python: a configuration from a stranger can do nothing but arithmetic.

Each text has two readings. As a cvxpy expression it becomes part of the program; whatever does not
contain `split` is computed in JAX and enters as one parameter, so affine rules are DPP however they
are written. As arithmetic on JAX arrays it gives values, violations and what a plan is worth.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

Facts = Mapping[str, Array]  # (users, *batch) or (*batch), 0 for padded users

# Numbers of one instance under one assignment; none is negative.
FACTS = {
    "steps": "T, denoising steps of a run",
    "users": "number of users",
    "num_granted": "number of granted users",
    "granted": "1 for a granted user, else 0",
    "wait": "s waited when the batch starts",
    "transfer": "s on the air, 0 where denied",
    "local_step": "s per step on the own device",
    "edge_step": "s per step of the user's batch, 0 where denied",
    "rate": "GPU-seconds an edge step takes from the server's budget, 0 where denied",
    "demand": "images of the request",
    "alpha": "s, worth of +1 accuracy",
    "payload": "bit, prompt up and latent down",
    "spectral_efficiency": "bit/s/Hz",
}
SHORTHANDS = {
    "edge_time": "edge_step * (steps - split)",
    "device_time": "local_step * split",
    "latency": "wait + transfer + edge_time + device_time",
    "local_latency": "wait + steps * local_step",
}
SPLIT = "split"
SCALARS = ("steps", "users", "num_granted")
MASK = "mask"  # beside the facts: True for real users

# The functions by cvxpy's names. All are 0 at 0: padded users show 0, and must count for nothing.
ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "pos": lambda x: jnp.maximum(x, 0),
    "neg": lambda x: jnp.maximum(-x, 0),
    "abs": jnp.abs,
    "square": jnp.square,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
}
# Of all users' values, and whether they are real, to one number.
REDUCTIONS: dict[str, Callable[[Array, Array], Array]] = {
    "sum": lambda x, real: jnp.sum(jnp.where(real, x, 0), axis=0),
    "sum_squares": lambda x, real: jnp.sum(jnp.where(real, x * x, 0), axis=0),
    "norm1": lambda x, real: jnp.sum(jnp.where(real, jnp.abs(x), 0), axis=0),
    "norm2": lambda x, real: _root(jnp.sum(jnp.where(real, x * x, 0), axis=0)),
    "max": lambda x, real: jnp.max(jnp.where(real, x, -jnp.inf), axis=0),
    "min": lambda x, real: jnp.min(jnp.where(real, x, jnp.inf), axis=0),
}
FUNCTIONS = (*ELEMENTWISE, *REDUCTIONS)


def _root(x: Array) -> Array:
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)  # its gradient at 0 is 0


_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


class RuleError(ValueError):
    """A rule that cannot be read or is not convex; says which, why and what is allowed."""

    def __init__(self, text: str, wrong: str, allowed: str) -> None:
        super().__init__(f"{text!r} {wrong}; {allowed}")


@dataclass(frozen=True)
class Rules:
    """Constraints that split points must keep, and concave terms (s) added to the objective."""

    constraints: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.constraints or self.terms)

    def worth(self, facts: Facts, split: Array) -> Array:
        """The terms' sum in seconds, (*batch)."""
        found = [arithmetic(parsed(text), {**facts, SPLIT: split}) for text in self.terms]
        return sum(found, jnp.zeros(split.shape[1:], split.dtype))

    def violations(self, facts: Facts, split: Array) -> list[Array]:
        """By how much each user misses each constraint, as a share of its sides' size.

        One array (users, *batch) per constraint; one that is a single number is missed by all.
        """
        found = []
        for text in self.constraints:
            left, right = (arithmetic(side, {**facts, SPLIT: split}) for side in sides(text))
            size = 1 + jnp.maximum(jnp.abs(left), jnp.abs(right))
            missed = jnp.broadcast_to(jnp.maximum(left - right, 0) / size, split.shape)
            found.append(jnp.where(facts[MASK], missed, 0))
        return found

    def violation(self, facts: Facts, split: Array) -> Array:
        """The largest of `violations`, (*batch)."""
        found = [jnp.max(missed, axis=0) for missed in self.violations(facts, split)]
        return jnp.max(jnp.stack(found or [jnp.zeros(split.shape[1:])]), axis=0)

    def missed(self, facts: Facts, split: Array) -> Array:
        """The sum of `violations`, (*batch): it falls where any user misses less."""
        found = [jnp.sum(missed, axis=0) for missed in self.violations(facts, split)]
        return sum(found, jnp.zeros(split.shape[1:]))


NO_RULES = Rules()


# ---- reading texts


@lru_cache(maxsize=256)
def parsed(text: str) -> ast.expr:
    """The tree of an expression, of nothing but what is allowed. Raises RuleError."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        reason = getattr(error, "msg", str(error))
        raise RuleError(text, f"is no expression ({reason})", "must be one, as in Python") from None
    return _Checker(text).visit(tree)


@lru_cache(maxsize=256)
def sides(text: str) -> tuple[ast.expr, ast.expr]:
    """(smaller, larger) of a constraint. Raises RuleError."""
    allowed = "must be one comparison with <= or >="
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        tree = ast.Constant(0)
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1:
        raise RuleError(text, "is no constraint", allowed)
    left, right = (_Checker(text).visit(side) for side in (tree.left, tree.comparators[0]))
    if isinstance(tree.ops[0], ast.LtE | ast.Lt):
        return left, right
    if isinstance(tree.ops[0], ast.GtE | ast.Gt):
        return right, left
    raise RuleError(text, "is no inequality", allowed)


class _Checker(ast.NodeTransformer):
    """Refuses every node that is not arithmetic, and writes shorthands out."""

    def __init__(self, text: str) -> None:
        self.text = text

    def generic_visit(self, node: ast.AST) -> ast.expr:
        what = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
        allowed = "must be numbers, names, + - * / and **2, and calls of functions"
        raise RuleError(self.text, f"has {what!r}", allowed)

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if type(node.value) not in (int, float):
            return self.generic_visit(node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in SHORTHANDS:
            return parsed(SHORTHANDS[node.id])
        self._known(node.id, [SPLIT, *FACTS, *SHORTHANDS], "name")
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        if not isinstance(node.op, ast.USub | ast.UAdd):
            return self.generic_visit(node)
        inner = self.visit(node.operand)
        return ast.UnaryOp(node.op, inner) if isinstance(node.op, ast.USub) else inner

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        square = isinstance(node.right, ast.Constant) and node.right.value == 2
        if type(node.op) not in _BINARY or (isinstance(node.op, ast.Pow) and not square):
            return self.generic_visit(node)
        return ast.BinOp(self.visit(node.left), node.op, self.visit(node.right))

    def visit_Call(self, node: ast.Call) -> ast.expr:
        function = node.func
        if isinstance(function, ast.Attribute) and ast.unparse(function.value) in ("cp", "cvxpy"):
            function = ast.Name(function.attr)
        if not isinstance(function, ast.Name) or node.keywords:
            return self.generic_visit(node)
        self._known(function.id, list(FUNCTIONS), "function")
        arity = 2 if function.id in ("maximum", "minimum") else 1
        if len(node.args) != arity:
            wrong = f"calls {function.id} with {len(node.args)} arguments"
            raise RuleError(self.text, wrong, f"must be {arity}")
        arguments = [self.visit(argument) for argument in node.args]
        if function.id in REDUCTIONS and not is_vector(arguments[0]):
            wrong = f"takes the {function.id} of a single number"
            raise RuleError(self.text, wrong, "must be of a number per user")
        return ast.Call(function, arguments, [])

    def _known(self, name: str, allowed: Sequence[str], what: str) -> None:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
            near = f" (did you mean {close[0]}?)" if close else ""
            wrong = f"has the unknown {what} {name!r}{near}"
            raise RuleError(self.text, wrong, f"must be among {', '.join(allowed)}")


def arithmetic(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """A tree's value on JAX arrays."""
    match node:
        case ast.Constant(value=number):
            return number
        case ast.Name(id=name):
            return names[name]
        case ast.UnaryOp(operand=inner):
            return -arithmetic(inner, names)
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](arithmetic(left, names), arithmetic(right, names))
        case ast.Call(func=ast.Name(id=name), args=[argument]) if name in REDUCTIONS:
            return REDUCTIONS[name](arithmetic(argument, names), names[MASK])
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return ELEMENTWISE[name](*(arithmetic(part, names) for part in arguments))
    raise AssertionError(ast.dump(node))  # the checker lets nothing else through


# ---- what a tree is


def has_split(node: ast.expr) -> bool:
    """Whether the tree depends on the decision."""
    return any(isinstance(part, ast.Name) and part.id == SPLIT for part in ast.walk(node))


def is_number(node: ast.expr) -> bool:
    """Whether the tree holds nothing but numbers."""
    return not any(isinstance(part, ast.Name) and part.id in FACTS for part in ast.walk(node))


def is_vector(node: ast.expr) -> bool:
    """Whether a tree has one value per user."""
    match node:
        case ast.Name(id=name):
            return name not in SCALARS
        case ast.Call(func=ast.Name(id=name)) if name in REDUCTIONS:
            return False
    return any(is_vector(part) for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr))


def sign(node: ast.expr) -> int:
    """1 where a tree without `split` is never negative, -1 where never positive, else 0."""
    match node:
        case ast.Constant(value=number):
            return 1 if float(number) >= 0 else -1  # type: ignore[arg-type]
        case ast.Name():
            return 1
        case ast.UnaryOp(operand=inner):
            return -sign(inner)
        case ast.BinOp(left=left, op=ast.Mult() | ast.Div(), right=right):
            return sign(left) * sign(right)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return sign(left) if sign(left) == sign(right) else 0
        case ast.BinOp(op=ast.Pow()):
            return 1
        case ast.Call(func=ast.Name(id=name), args=arguments):
            positive = name not in ("sum", "max", "min", "maximum", "minimum")
            return 1 if positive or all(sign(part) > 0 for part in arguments) else 0
    return 0
