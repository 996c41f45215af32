"""The convex layers side by side: quadratic programs and whole split problems per second.

Problems are those of `benchmarks.speed.splits`, of edge scenarios of several sizes. A "single QP"
is the quadratic program around the optimum that the cvxpylayers solvers differentiate; the native
solver has none and solves the whole split problem there too. A "whole solve" is `solve_splits`.

MOREAU and DIFFCP solve in float64 on the host, whatever the arrays are, and so does qpax here: in
float32 it keeps slacks and multipliers above 3e-4, and never meets its tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import tree

from benchmarks import inputs
from benchmarks.common import Row
from benchmarks.speed.splits import draw, forward, forward_backward
from benchmarks.speed.timing import Case, Work
from offload_jax.problem.scenario import EdgeScenario
from offload_jax.splits import SplitProblem, solve_splits
from offload_jax.splits.layer import Answer, ConeLayer
from offload_jax.splits.qp import split_program
from offload_jax.splits.sqp import LocalProgram, program_at

LAYERS = ("native", "moreau", "diffcp", "qpax")
KINDS = {"single QP": LAYERS, "whole solve": LAYERS[:3]}  # qpax solves quadratic programs only
PASSES = ("forward", "forward+backward")
SIZES = (8, 16, 24, 64)  # users
BATCHES = (1, 64, 512, 4096)

# Estimated problems/s at each of SIZES on two cores. No claim: they only say which cases would take
# too long. Those without a line are fast enough at any batch.
RATES = {
    ("moreau", "single QP", "forward"): (20e3, 15e3, 8e3, 4e3),
    ("moreau", "single QP", "forward+backward"): (9e3, 7e3, 6e3, 2.6e3),
    ("moreau", "whole solve", "forward"): (5e3, 4e3, 3.5e3, 1.2e3),
    ("moreau", "whole solve", "forward+backward"): (4e3, 3e3, 2e3, 830),
    ("diffcp", "single QP", "forward"): (3.6e3, 2.9e3, 2.4e3, 1.1e3),
    ("diffcp", "single QP", "forward+backward"): (550, 400, 300, 27),
    ("diffcp", "whole solve", "forward"): (650, 400, 300, 80),
    ("diffcp", "whole solve", "forward+backward"): (330, 200, 150, 24),
    ("qpax", "single QP", "forward"): (50e3, 19e3, 6e3, 630),
    ("qpax", "single QP", "forward+backward"): (40e3, 14e3, 4.5e3, 430),
}
LONGEST_S = 1.5  # a case whose call would take longer is left out
COMPARED = (24, 512)  # ... but at this size and batch, which `table.layers` shows
ONE_INPUT_S = 0.3  # and one whose call would take longer than this has a single input

# qpax's default tolerance, which these programs meet; many never meet 1e-6. Its derivative is that
# of a program relaxed by the other number; with the default, 1e-3, the median error is 10x larger.
QPAX_TOLERANCE = 1e-5
QPAX_RELAXATION = 1e-5


@dataclass(frozen=True)
class Workload:
    """One case."""

    layer: str
    kind: str
    size: int  # users
    batch: int
    direction: str  # one of PASSES

    @property
    def name(self) -> str:
        """As `ratios` reads it: the layer, then what all layers have in common."""
        return (
            f"{self.layer}, {self.kind}, N={self.size} M=6 G=3, {self.direction}, "
            f"batch {self.batch}"
        )

    @property
    def estimate(self) -> float:
        """Seconds of a call, roughly."""
        rates = RATES.get((self.layer, self.kind, self.direction))
        return 0.0 if rates is None else self.batch / rates[SIZES.index(self.size)]


def cases(quick: bool) -> list[Case]:
    """Everything that is not left out, the layers of a workload one after the other."""
    found = _workloads(SIZES[:1], (8,)) if quick else _workloads(SIZES, BATCHES)
    return [
        Case(work.name, "problems", partial(_prepare, work))
        for work in found
        if work.estimate <= LONGEST_S or (work.size, work.batch) == COMPARED
    ]


def _workloads(sizes: Sequence[int], batches: Sequence[int]) -> Iterator[Workload]:
    for kind, layers in KINDS.items():
        for size in sizes:
            for direction in PASSES:
                for batch in batches:
                    for layer in layers:
                        yield Workload(layer, kind, size, batch, direction)


def ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Native's rate over each other layer's, for every case that both have a rate of."""
    rates = {
        tuple(row["case"].split(", ", 1)): row["rate"]
        for row in rows
        if row["benchmark"] == "layers" and "rate" in row
    }
    return [
        {"case": case, "layer": layer, "rate_native": native, "rate": rate, "ratio": native / rate}
        for (layer, case), rate in rates.items()
        if layer != "native" and (native := rates.get(("native", case)))
    ]


@jax.jit
def program_of(problem: SplitProblem, worth: jax.Array) -> tuple[LocalProgram, jax.Array]:
    """The quadratic programs at the optima of split problems, and `worth`; both batch first."""
    numbers, _ = program_at(problem, solve_splits(problem).split)
    return tree.map(lambda x: jnp.moveaxis(x, -1, 0), (numbers, worth))


def answer(layer: ConeLayer, program: LocalProgram, worth: jax.Array) -> Answer:
    """The layer's answer to quadratic programs (batch first)."""
    del worth
    return layer(*program)


def answer_backward(
    layer: ConeLayer, program: LocalProgram, worth: jax.Array
) -> tuple[Answer, LocalProgram]:
    """The answer, and the gradient of sum(worth * move) in every number of the program."""

    def linear(program: LocalProgram) -> tuple[jax.Array, Answer]:
        found = layer(*program)
        return jnp.sum(worth * found.values[0]), found

    gradient, found = jax.grad(linear, has_aux=True)(program)
    return found, gradient


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function computed in float64, its arguments and results in float32."""

    def wide(*arguments: Any) -> Any:
        with jax.enable_x64(True):
            found = function(*tree.map(lambda x: x.astype(jnp.float64), arguments))
            return tree.map(lambda x: x.astype(jnp.float32), found)

    return wide


def qpax_form(program: LocalProgram) -> tuple[jax.Array, ...]:
    """One program as qpax has it: (Q, q, A, b, G, h) of 1/2 y'Q y + q'y, A y = b, G y <= h."""
    rows, dtype = len(program.slope), program.slope.dtype
    eye, none = jnp.eye(rows, dtype=dtype), jnp.zeros(0, dtype)
    matrix = jnp.concatenate([-eye, eye, -program.use])
    bound = jnp.concatenate([-program.lower, program.upper, -program.need])
    return eye, -program.slope, none.reshape(0, rows), none, matrix, bound


@in_float64
def qpax_answer(program: LocalProgram, worth: jax.Array) -> jax.Array:
    """The moves that qpax finds (batch first)."""
    del worth
    return _qpax_moves(program)


@in_float64
def qpax_answer_backward(program: LocalProgram, worth: jax.Array) -> tuple[jax.Array, LocalProgram]:
    """The moves, and the gradient of sum(worth * move) in every number of the program."""

    def linear(program: LocalProgram) -> tuple[jax.Array, jax.Array]:
        moves = _qpax_moves(program)
        return jnp.sum(worth * moves), moves

    gradient, moves = jax.grad(linear, has_aux=True)(program)
    return moves, gradient


def _qpax_moves(program: LocalProgram) -> jax.Array:
    import qpax

    def one(program: LocalProgram) -> jax.Array:
        settings = {"solver_tol": QPAX_TOLERANCE, "target_kappa": QPAX_RELAXATION}
        return qpax.solve_qp_primal(*qpax_form(program), **settings)

    return jax.vmap(one)(program)


@jax.jit
@in_float64
def qpax_certificate(program: LocalProgram) -> tuple[jax.Array, jax.Array]:
    """(residual, 1 where converged) of each program: its primal function returns neither."""
    import qpax

    def one(program: LocalProgram) -> tuple[jax.Array, jax.Array]:
        form = qpax_form(program)
        y, s, z, _, converged, _ = qpax.solve_qp(*form, solver_tol=QPAX_TOLERANCE)
        quadratic, linear, _, _, matrix, bound = form
        violations = (quadratic @ y + linear + matrix.T @ z, matrix @ y + s - bound, s * z)
        return jnp.max(jnp.abs(jnp.concatenate(violations))), converged

    return jax.vmap(one)(program)


def _prepare(work: Workload) -> Work:
    scenario = EdgeScenario(num_users=(work.size,))
    count = 1 if work.estimate > ONE_INPUT_S else inputs.VARIANTS
    batches = inputs.batches(scenario, work.batch)[:count]
    drawn = [
        draw(instances, key) for instances, key in zip(batches, inputs.keys(2)[:count], strict=True)
    ]
    backward = work.direction == "forward+backward"
    solver = "native" if work.layer == "native" else f"cvxpylayers-{work.layer}"
    if work.kind == "whole solve" or work.layer == "native":
        function = partial(forward_backward if backward else forward, solver=solver)
        return Work(function, drawn, work.batch, partial(_solve_notes, backward))
    programs = [program_of(*arguments) for arguments in drawn]
    if work.layer == "qpax":
        import qpax  # noqa: F401 - where it is missing, the row says so

        function = qpax_answer_backward if backward else qpax_answer
        return Work(function, programs, work.batch, partial(_qpax_notes, programs))
    servers = drawn[0][0].budget.shape[0]
    layer = split_program(work.size, servers, solver).layer
    function = partial(answer_backward if backward else answer, layer)
    return Work(function, programs, work.batch, partial(_answer_notes, backward))


def _solve_notes(backward: bool, outputs: Sequence[Any], seconds: float) -> dict[str, float]:
    """How well all was solved: the KKT residual of split problems."""
    del seconds
    solutions = [output[0] if backward else output for output in outputs]
    return _quality([(found.residual, found.status == 0) for found in solutions])


def _answer_notes(backward: bool, outputs: Sequence[Any], seconds: float) -> dict[str, float]:
    """How well all was solved: the residual of cone programs."""
    del seconds
    answers = [output[0] if backward else output for output in outputs]
    return _quality([(found.residual, found.solved) for found in answers])


def _qpax_notes(
    arguments: Sequence[tuple[LocalProgram, jax.Array]], outputs: Sequence[Any], seconds: float
) -> dict[str, float]:
    """How well all was solved: the largest violation of an optimality condition."""
    del outputs, seconds
    found = [qpax_certificate(program) for program, _ in arguments]
    return _quality([(residual, converged > 0) for residual, converged in found])


def _quality(found: Sequence[tuple[jax.Array, jax.Array]]) -> dict[str, float]:
    """Of (residuals, whether solved) per input."""
    return {
        "worst_residual": float(max(jnp.max(residual) for residual, _ in found)),
        "unsolved": sum(int(jnp.sum(~solved)) for _, solved in found),
    }
