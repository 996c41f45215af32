"""The quadratic program that `sqp` solves again and again, with users' own rules, in cvxpy."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from offload_jax.splits import rules as language
from offload_jax.splits.layer import ConeLayer
from offload_jax.splits.rules import NO_RULES, Facts, RuleError, Rules

if TYPE_CHECKING:
    import cvxpy as cp


class Affine(NamedTuple):
    """const + coefficient * split, user by user; the trees hold no `split` themselves."""

    const: ast.expr
    coefficient: ast.expr | None  # None: does not depend on split
    vector: bool  # one value per user
    padded: int = 0  # what padded users show: 0, or -1 below and 1 above all others


class SplitProgram(NamedTuple):
    """The layer of a program; its parameters are those of `sqp.LocalProgram`, then the rules'.

    The answer's values are the moves, the servers' multipliers, and the terms' worth over `scale`.
    """

    layer: ConeLayer
    affine: tuple[Affine, ...]  # what the rules' parameters are computed from
    has_worth: bool  # the rules have terms

    def rule_values(
        self,
        facts: Facts,
        at: Float[Array, "rows *batch"],
        unit: Float[Array, "rows *batch"],
    ) -> list[Array]:
        """Values of the rules' parameters around `at`, where a move changes split by `unit`."""
        found = []
        for part in self.affine:
            base = jnp.asarray(language.arithmetic(part.const, facts), at.dtype)
            slope = jnp.zeros_like(at)
            if part.coefficient is not None:
                slope = jnp.asarray(language.arithmetic(part.coefficient, facts), at.dtype)
            if not part.vector:
                found.append(jnp.broadcast_to(base, at.shape[1:]))
                continue
            base, slope = jnp.broadcast_to(base + slope * at, at.shape), slope * unit
            real = facts[language.MASK]
            reach = jnp.max(jnp.where(real, jnp.abs(base) + jnp.abs(slope), 0), axis=0)
            found.append(jnp.where(real, base, part.padded * 2 * reach))
            if part.coefficient is not None:
                found.append(jnp.where(real, jnp.broadcast_to(slope, at.shape), 0))
        return found


@lru_cache(maxsize=32)
def split_program(rows: int, servers: int, solver: str, rules: Rules = NO_RULES) -> SplitProgram:
    """The program of a size, compiled once. Raises RuleError for a rule that is not convex."""
    import cvxpy as cp

    move, worth = cp.Variable(rows), cp.Variable()
    slope, lower, upper = cp.Parameter(rows), cp.Parameter(rows), cp.Parameter(rows)
    use, need = cp.Parameter((servers, rows)), cp.Parameter(servers)
    budgets = use @ move >= need
    gain = slope @ move - 0.5 * cp.sum(cp.square(move))
    parameters, outputs = [slope, lower, upper, use, need], [move, budgets.dual_variables[0]]
    constraints = [move >= lower, move <= upper, budgets]
    writer = _Writer(rows, move)
    if rules.terms:
        scale = cp.Parameter(nonneg=True)
        constraints.append(scale * worth <= sum(writer.term(text) for text in rules.terms))
        gain, parameters, outputs = gain + worth, [*parameters, scale], [*outputs, worth]
    constraints += [writer.constraint(text) for text in rules.constraints]
    problem = cp.Problem(cp.Maximize(gain), constraints + writer.lifted)
    layer = ConeLayer(problem, parameters + writer.parameters, outputs, solver)
    return SplitProgram(layer, tuple(writer.affine), bool(rules.terms))


@lru_cache(maxsize=32)
def check_rules(rules: Rules) -> None:
    """Raises RuleError for the first rule that cannot be read, or is not DCP and DPP."""
    if rules:
        import cvxpy as cp

        writer = _Writer(3, cp.Variable(3))
        for text in rules.terms:
            writer.term(text)
        for text in rules.constraints:
            writer.constraint(text)


class _Writer:
    """Turns rules into cvxpy expressions of the moves, and notes the parameters these need."""

    def __init__(self, rows: int, move: cp.Variable, lift: bool = True) -> None:
        import cvxpy

        self.cp, self.rows, self.move, self.lift = cvxpy, rows, move, lift
        self.parameters: list[cp.Parameter] = []
        self.affine: list[Affine] = []
        self.lifted: list[cp.Constraint] = []

    def term(self, text: str) -> cp.Expression:
        """A term, which has to be one concave number."""
        plain = _Writer(self.rows, self.move, lift=False)._expression(text, language.parsed(text))
        if plain.shape != ():
            raise RuleError(
                text, "is one number per user", "must be a single one: put sum( ) around"
            )
        if not plain.is_concave():
            wrong = f"is {plain.curvature.lower().replace('unknown', 'neither convex nor concave')}"
            raise RuleError(text, wrong, "must be concave, since terms are maximised (DCP)")
        return self._disciplined(text, self._expression(text, language.parsed(text)))

    def constraint(self, text: str) -> cp.Constraint:
        """A constraint, whose smaller side has to be convex and whose larger one concave."""
        plain = _Writer(self.rows, self.move, lift=False)
        smaller, larger = (plain._expression(text, side) for side in language.sides(text))
        if not (smaller <= larger).is_dcp():
            curves = f"{smaller.curvature.lower()} <= {larger.curvature.lower()}"
            raise RuleError(text, f"is {curves}", "must be convex <= concave (DCP)")
        # As one difference, so that a number beside a value per user is one per real user.
        smaller_tree, larger_tree = language.sides(text)
        difference = self._expression(text, ast.BinOp(smaller_tree, ast.Sub(), larger_tree))
        return self._disciplined(text, difference <= 0)

    def _disciplined(self, text: str, found: Any) -> Any:
        if not found.is_dcp(dpp=True):
            wrong = "is convex, but not in a way that can be differentiated (not DPP)"
            raise RuleError(text, wrong, "must not multiply functions of split by other numbers")
        return found

    def _expression(self, text: str, node: ast.expr, vector: bool = False) -> cp.Expression:
        return self._as_cvxpy(self._read(text, node), vector)

    def _as_cvxpy(
        self, part: Affine | cp.Expression, vector: bool = False, padded: int = 0
    ) -> cp.Expression:
        """A part as cvxpy has it; with `vector`, one number becomes one per (real) user."""
        cp = self.cp
        if not isinstance(part, Affine):
            return part
        part = part._replace(vector=part.vector or vector, padded=padded)
        if not part.vector and language.is_number(part.const):
            return cp.Constant(language.arithmetic(part.const, {}))
        self.affine.append(part)
        shape = (self.rows,) if part.vector else ()
        if part.coefficient is None:
            sign = language.sign(part.const)
            known = {"nonneg": True} if sign > 0 else {"nonpos": True} if sign < 0 else {}
            self.parameters.append(cp.Parameter(shape, **known))
            return self.parameters[-1]
        const, slope = cp.Parameter(shape), cp.Parameter(shape)
        self.parameters += [const, slope]
        return const + cp.multiply(slope, self.move)

    def _read(self, text: str, node: ast.expr) -> Affine | cp.Expression:
        if not language.has_split(node):
            return Affine(node, None, language.is_vector(node))
        match node:
            case ast.Name():
                return Affine(ast.Constant(0), ast.Constant(1), True)
            case ast.UnaryOp(operand=inner):
                return self._scaled(ast.Constant(-1), self._read(text, inner))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._sum(self._read(text, left), self._read(text, right))
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                minus = self._scaled(ast.Constant(-1), self._read(text, right))
                return self._sum(self._read(text, left), minus)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                for factor, rest in ((left, right), (right, left)):
                    if not language.has_split(factor):
                        return self._scaled(factor, self._read(text, rest))
                raise RuleError(text, "multiplies split by split", "must be convex (DCP)")
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                if language.has_split(right):
                    raise RuleError(text, "divides by split", "must be convex (DCP)")
                inverse = ast.BinOp(ast.Constant(1), ast.Div(), right)
                return self._scaled(inverse, self._read(text, left))
            case ast.BinOp(left=base):
                return self.cp.square(self._expression(text, base))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return self._call(text, name, arguments)
        raise AssertionError(ast.dump(node))  # the checker lets nothing else through

    def _call(self, text: str, name: str, arguments: list[ast.expr]) -> cp.Expression:
        atom = getattr(self.cp, name)
        if name in ("max", "min"):  # where a padded user's 0 would count
            part = self._read(text, arguments[0])
            if not isinstance(part, Affine):
                wrong = f"takes the {name} of a function of split"
                raise RuleError(text, wrong, "must be of an expression that is affine in split")
            return atom(self._as_cvxpy(part, padded=-1 if name == "max" else 1))
        vector = any(language.is_vector(argument) for argument in arguments)
        return atom(*(self._expression(text, argument, vector) for argument in arguments))

    def _sum(self, a: Affine | cp.Expression, b: Affine | cp.Expression) -> Any:
        if isinstance(a, Affine) and isinstance(b, Affine):
            const = ast.BinOp(a.const, ast.Add(), b.const)
            slopes = [x.coefficient for x in (a, b) if x.coefficient is not None]
            slope = ast.BinOp(slopes[0], ast.Add(), slopes[1]) if len(slopes) == 2 else slopes[0]
            return Affine(const, slope, True)
        vector = any(x.vector if isinstance(x, Affine) else x.shape != () for x in (a, b))
        return self._as_cvxpy(a, vector) + self._as_cvxpy(b, vector)

    def _scaled(self, factor: ast.expr, part: Affine | cp.Expression) -> Affine | cp.Expression:
        if isinstance(part, Affine):
            slope = part.coefficient
            slope = None if slope is None else ast.BinOp(factor, ast.Mult(), slope)
            vector = part.vector or language.is_vector(factor)
            return Affine(ast.BinOp(factor, ast.Mult(), part.const), slope, vector)
        by = self._as_cvxpy(Affine(factor, None, language.is_vector(factor)))
        if self.lift and not language.is_number(factor):
            # A parameter times a variable is DPP, times an expression with parameters it is not.
            held = self.cp.Variable(part.shape)
            self.lifted.append(held >= part if part.is_convex() else held <= part)
            part = held
        return self.cp.multiply(by, part)
