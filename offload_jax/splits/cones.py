"""Batches of cone programs of one structure, solved and differentiated on the host in float64.

    minimise 1/2 x'P x + q'x   subject to   A x + s = b,  s in a cone,   dual z

MOREAU (interior point, quadratic objectives) and DIFFCP with Clarabel (linear ones: cvxpy then
writes squares as cones). Each answer comes with its residual, since neither says reliably that a
problem of a batch has none: both return small numbers for an infeasible one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import sparse

# Interior-point iterations stop here. The default of both, 1e-8, leaves splits off by 1e-5 of T
# where a row's curvature is small beside the others'.
TOLERANCE = 1e-12
# Of DIFFCP, whose derivative suffers from what is left: at 1e-12 that of 1 problem of 1,000 was
# off by 2 %, at 1e-13 none is by more than 1e-4.
FINER = 1e-13


class ConeProgram(NamedTuple):
    """Numbers of a batch of cone programs, the batch first; or changes or cotangents of them."""

    quadratic: np.ndarray  # nonzeros of P
    linear: np.ndarray  # q
    matrix: np.ndarray  # nonzeros of A
    bound: np.ndarray  # b


class Point(NamedTuple):
    """Solutions of a batch: primal, dual and slack."""

    x: np.ndarray
    z: np.ndarray
    s: np.ndarray


class Structure:
    """Where the nonzeros stand: (row, column) of every entry of P and A."""

    def __init__(
        self,
        shape: tuple[int, int],  # of A
        quadratic: tuple[np.ndarray, np.ndarray],
        matrix: tuple[np.ndarray, np.ndarray],
        bound_rows: np.ndarray,  # rows of b that may differ from 0
        orthant: slice,  # rows where s >= 0
    ) -> None:
        self.shape, self.bound_rows, self.orthant = shape, bound_rows, orthant
        self.quadratic, self.matrix = quadratic, matrix
        self._to_rows = _adder(matrix[0], shape[0])
        self._to_columns = _adder(matrix[1], shape[1])
        self._to_quadratic = _adder(quadratic[0], shape[1])

    def residual(self, program: ConeProgram, point: Point) -> np.ndarray:
        """Largest violation of A x + s = b, P x + q + A'z = 0 and x'P x + q'x + b'z = 0, scaled.

        And of s >= 0 and z >= 0, which an active-set method may miss; in the other cones they are
        by the way interior points are made.
        """
        x, z, s = point
        ax = (self._to_rows @ (program.matrix * x[:, self.matrix[1]]).T).T
        atz = (self._to_columns @ (program.matrix * z[:, self.matrix[0]]).T).T
        px = (self._to_quadratic @ (program.quadratic * x[:, self.quadratic[1]]).T).T
        primal = np.abs(ax + s - program.bound).max(axis=1) / (1 + _size(program.bound))
        dual = np.abs(px + program.linear + atz).max(axis=1) / (1 + _size(program.linear))
        worth = np.sum(program.linear * x, axis=1)
        gap = np.abs(np.sum(px * x, axis=1) + worth + np.sum(program.bound * z, axis=1))
        below = np.minimum(s[:, self.orthant], z[:, self.orthant]).min(axis=1, initial=0)
        primal = np.maximum(primal, -below)
        largest = np.maximum(np.maximum(primal, dual), gap / (1 + np.abs(worth)))
        return np.where(np.isfinite(largest), largest, np.inf)


def _adder(index: np.ndarray, size: int) -> sparse.csr_array:
    """The matrix (size, entries) that adds up the entries of the same index."""
    count = len(index)
    return sparse.csr_array((np.ones(count), (index, np.arange(count))), shape=(size, count))


def _ints(shape: Any) -> tuple[int, int]:
    """A shape of Python's integers: cvxpy mixes in NumPy's."""
    return int(shape[0]), int(shape[1])


def _after(start: int, count: int) -> slice:
    return slice(int(start), int(start) + int(count))


def _size(x: np.ndarray) -> np.ndarray:
    return np.abs(x).max(axis=1, initial=0)


class Backend(Protocol):
    """Solves and differentiates batches of cone programs of one structure."""

    structure: Structure

    def solve(self, program: ConeProgram, rough: bool) -> Point:
        """Solutions; `rough` ones are points on the way to a better program, and may be faster."""
        ...

    def pull(
        self, program: ConeProgram, dx: np.ndarray, dz: np.ndarray
    ) -> tuple[Point, ConeProgram]:
        """Solutions, and the cotangents of the numbers for cotangents of x and z."""
        ...


class Moreau:
    """MOREAU: solved by its interior point method, differentiated at its active set.

    The derivative of its interior point method is regularised, also where "exact" is asked for: off
    by 1e-3 and more where a budget rests on a row of little use. The active-set method's is exact,
    but exists for strictly convex quadratic programs only, and raises for the whole batch where one
    problem has no unique multipliers; that one then gets the regularised derivative.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        offsets, p_offsets = np.diff(context.A_row_offsets), np.diff(context.P_row_offsets)
        self.structure = Structure(
            shape=_ints(context.A_shape),
            quadratic=(np.repeat(np.arange(len(p_offsets)), p_offsets), context.P_col_indices),
            matrix=(np.repeat(np.arange(len(offsets)), offsets), context.A_col_indices),
            bound_rows=context.b_idx,
            orthant=_after(context.cones.num_zero_cones, context.cones.num_nonneg_cones),
        )
        cones = context.cones
        polyhedral = cones.num_zero_cones + cones.num_nonneg_cones == context.A_shape[0]
        # The active-set method wants a curvature for every variable.
        self._has_active_set = polyhedral and bool(np.all(p_offsets > 0))
        self._compiled = lru_cache(maxsize=32)(self._compile)

    def _compile(self, method: str, differentiable: bool, batch: int) -> Any:
        import moreau

        c = self._context
        tolerances = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
        settings = moreau.Settings(
            solver=method,
            device="cpu",
            batch_size=batch,
            enable_grad=differentiable,  # which takes a third longer
            ipm_settings=moreau.IPMSettings(**dict.fromkeys(tolerances, TOLERANCE)),
            # Its default, 1e-6, misses a budget that rests on a row of little use.
            active_set_settings=moreau.ActiveSetSettings(primal_tol=TOLERANCE),
        )
        rows, columns = c.A_shape
        p, a = (c.P_row_offsets, c.P_col_indices), (c.A_row_offsets, c.A_col_indices)
        return moreau.CompiledSolver(columns, rows, *p, *a, c.cones, settings)

    def solve(self, program: ConeProgram, rough: bool) -> Point:
        method = "active_set" if rough and self._has_active_set else "ipm"
        return self._solved(method, False, program)[1]

    def pull(
        self, program: ConeProgram, dx: np.ndarray, dz: np.ndarray
    ) -> tuple[Point, ConeProgram]:
        if not self._has_active_set:
            return self._pulled("ipm", program, dx, dz)
        try:
            return self._pulled("active_set", program, dx, dz)
        except RuntimeError:
            if len(dx) == 1:
                return self._pulled("ipm", program, dx, dz)
        half = len(dx) // 2
        parts = [
            self.pull(ConeProgram(*(x[part] for x in program)), dx[part], dz[part])
            for part in (slice(half), slice(half, None))
        ]
        points, changes = zip(*parts, strict=True)
        return Point(*map(np.concatenate, zip(*points, strict=True))), ConeProgram(
            *map(np.concatenate, zip(*changes, strict=True))
        )

    def _pulled(
        self, method: str, program: ConeProgram, dx: np.ndarray, dz: np.ndarray
    ) -> tuple[Point, ConeProgram]:
        solver, point = self._solved(method, True, program)
        found = solver.backward(dx, dz, np.zeros_like(dz))
        names = ("dP_values", "dq", "dA_values", "db")
        return point, ConeProgram(*(np.asarray(found[name]) for name in names))

    def _solved(self, method: str, differentiable: bool, program: ConeProgram) -> tuple[Any, Point]:
        solver = self._compiled(method, differentiable, len(program.linear))
        solver.setup(program.quadratic, program.matrix)
        found = solver.solve(program.linear, program.bound)
        return solver, Point(np.array(found.x), np.array(found.z), np.array(found.s))


class Diffcp:
    """DIFFCP: Clarabel's solution, differentiated through the homogeneous self-dual embedding."""

    def __init__(self, context: Any) -> None:
        from cvxpy.reductions.solvers.conic_solvers.scs_conif import dims_to_solver_dict

        cones = dims_to_solver_dict(context.dims)
        rows, offsets = context.A_structure
        columns = context.A_shape[1] - 1
        entries = offsets[-2]
        matrix = (rows[:entries], np.repeat(np.arange(columns), np.diff(offsets[:-1])))
        empty = np.zeros(0, int)
        self.structure = Structure(
            shape=_ints((context.A_shape[0], columns)),
            quadratic=(empty, empty),
            matrix=matrix,
            bound_rows=context.b_idx,
            orthant=_after(cones["z"], cones["l"]),
        )
        self._offsets = offsets[:-1]
        self._cones = cones
        tolerances = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
        self._options = {"solve_method": "Clarabel", **dict.fromkeys(tolerances, FINER)}

    def solve(self, program: ConeProgram, rough: bool) -> Point:
        import diffcp

        del rough  # at its default tolerance the sequence ends too far from the optimum
        found = diffcp.solve_only_batch(*self._split(program), **self._options)
        return Point(*map(np.array, found))

    def pull(
        self, program: ConeProgram, dx: np.ndarray, dz: np.ndarray
    ) -> tuple[Point, ConeProgram]:
        import diffcp

        options = {**self._options, "mode": "dense"}
        *found, _, adjoint = diffcp.solve_and_derivative_batch(*self._split(program), **options)
        changes, db, dq = adjoint(list(dx), list(dz), list(np.zeros_like(dz)))
        rows, columns = self.structure.matrix
        da = np.array([np.asarray(change[rows, columns]).ravel() for change in changes])
        return Point(*map(np.array, found)), ConeProgram(
            program.quadratic, np.array(dq), da, np.array(db)
        )

    def _split(self, program: ConeProgram) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """One sparse matrix per problem, as diffcp takes them."""
        shape, rows = self.structure.shape, self.structure.matrix[0]
        matrices = [  # copies: diffcp removes zeros in place, from the shared structure too
            sparse.csc_matrix((numbers, rows, self._offsets), shape=shape, copy=True)
            for numbers in program.matrix
        ]
        cones = [self._cones] * len(matrices)
        return matrices, list(program.bound), list(program.linear), cones


BACKENDS: dict[str, type[Moreau] | type[Diffcp]] = {
    "cvxpylayers-moreau": Moreau,
    "cvxpylayers-diffcp": Diffcp,
}
