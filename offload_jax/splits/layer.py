"""A parametrised cvxpy problem as a JAX function: jit, vmap, scan and reverse mode, float32 or 64.

cvxpylayers turns the problem into a cone program whose numbers are linear in the parameters,

    minimise 1/2 x'P x + q'x   subject to   A x + s = b,  s in a cone,

and a solver of it answers with x, the dual z and the derivative. What its own JAX call cannot do is
why this file stands between: with DIFFCP it fails under `jit`; with MOREAU it wants all of JAX in
float64, takes one batch axis and drops the status. Here the parameters go to the host once, in one
array of any number of leading axes, and NumPy does the rest in float64. Nothing is kept between a
solve and its derivative (the backward pass solves again), so calls may come in any order.

The only file that imports cvxpylayers; that and cvxpy on first use, since it takes seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from offload_jax.splits.cones import BACKENDS, Backend, ConeProgram

if TYPE_CHECKING:
    import cvxpy as cp
    from cvxpylayers.jax import CvxpyLayer

# A cone program whose residual (below) is larger is not solved, whatever its solver says.
MAX_RESIDUAL = 1e-5
# Only so that the layer that is made, but not called, does not warn of its active-set method.
ARGUMENTS = {"cvxpylayers-moreau": {"solver": "ipm"}, "cvxpylayers-diffcp": {}}


_log = logging.getLogger(__name__)
_TAKEN = "_offload_jax_layer"  # attribute of a problem that has a layer


class Answer(NamedTuple):
    """What a layer returns; every array has the leading axes of the parameters."""

    values: tuple[Array, ...]  # of the variables and multipliers asked for
    residual: Float[
        Array, "..."
    ]  # largest violation of an optimality condition of the cone program
    solved: Bool[Array, "..."]  # whether that is below MAX_RESIDUAL


class ConeLayer:
    """The problem with one of the solvers in `BACKENDS`, differentiable in its parameters.

    `outputs` are variables of the problem, or `constraint.dual_variables[0]` for multipliers. Rows
    of a batch are solved apart: one that is infeasible or not finite gets a large residual and zero
    derivatives and harms no other. A problem belongs to one layer only.

    Raises ValueError for a problem that has a layer already or is not DPP, for a solver that is
    unknown or not installed, and for symmetric matrices, which cvxpy stores in part.
    """

    def __init__(
        self,
        problem: cp.Problem,
        parameters: Sequence[cp.Parameter],
        outputs: Sequence[cp.Variable],
        solver: str,
    ) -> None:
        # Canonicalising permutes what cvxpy caches on the problem, a second time wrongly.
        if getattr(problem, _TAKEN, False):
            raise ValueError("problem belongs to another layer; must be a fresh one for each")
        layer = _canonicalise(problem, parameters, outputs, solver)
        setattr(problem, _TAKEN, True)
        whole = all(place.unpack_fn == "reshape" for place in layer.ctx.var_recover)
        if not whole or any(layer.ctx.param_triu_indices or ()):
            raise ValueError("problem has a symmetric matrix to set or to return; must have none")
        self.shapes = tuple(parameter.shape for parameter in parameters)
        self.ndims = tuple(parameter.ndim for parameter in parameters)
        self._order = np.argsort(layer.ctx.user_order_to_col_order)
        self._recover = layer.ctx.var_recover
        self._host = _Host(layer, BACKENDS[solver])
        exact, self._rough = partial(self._solve, rough=False), partial(self._solve, rough=True)
        self._exact = jax.custom_vjp(exact)
        self._exact.defvjp(lambda packed, active: (exact(packed, active), packed), self._pull)

    def __call__(
        self,
        *values: Float[Array, "..."],
        active: Bool[Array, "..."] | None = None,
        rough: bool = False,
    ) -> Answer:
        """Solves for parameter values of shapes (..., *parameter.shape), leading axes in common.

        Problems that are not `active` are not solved: they answer zeros. A `rough` answer is
        quicker, less exact, and has no derivative. Raises ValueError for other shapes.
        """
        lead = values[0].shape[: values[0].ndim - self.ndims[0]] if values else ()
        found, wanted = [x.shape for x in values], [(*lead, *shape) for shape in self.shapes]
        if found != wanted:
            raise ValueError(f"values have shapes {found}; must be {wanted}")
        # cvxpy reads matrices by columns.
        columns = [
            jnp.moveaxis(x, range(len(lead), x.ndim), range(x.ndim - 1, len(lead) - 1, -1))
            for x in values
        ]
        packed = jnp.concatenate([columns[i].reshape(*lead, -1) for i in self._order], axis=-1)
        active = jnp.ones(lead, bool) if active is None else active
        primal, dual, residual = (self._rough if rough else self._exact)(packed, active)
        answers = []
        for place in self._recover:
            flat = primal[..., place.primal] if place.source == "primal" else dual[..., place.dual]
            shaped = flat.reshape(*lead, *place.shape[::-1])
            axes = [*range(len(lead)), *range(shaped.ndim - 1, len(lead) - 1, -1)]
            answers.append(shaped.transpose(axes))
        return Answer(tuple(answers), residual, residual <= MAX_RESIDUAL)

    def _solve(self, packed: Array, active: Array, *, rough: bool) -> tuple[Array, ...]:
        lead, dtype = packed.shape[:-1], packed.dtype
        shapes = [(*lead, self._host.primal_size), (*lead, self._host.dual_size), lead]
        host = partial(self._host.solve, rough=rough, dtype=dtype)
        return _call_back(host, shapes, dtype, _to_words(packed), active)

    def _pull(
        self, packed: Array, cotangents: tuple[Array, Array, Array]
    ) -> tuple[Array, np.ndarray]:
        """Cotangents of the parameters; residual and activity have none."""
        host = partial(self._host.pull, dtype=packed.dtype)
        sent = map(_to_words, (packed, *cotangents[:2]))
        (pulled,) = _call_back(host, [packed.shape], packed.dtype, *sent)
        return pulled, np.zeros(packed.shape[:-1], jax.dtypes.float0)


# Floats go to the host and back as words of 32 bits, a last axis of one or two. A callback may run
# in a thread that does not share the caller's `jax.enable_x64`, where JAX cuts float64 down.


def _call_back(
    host: Callable[..., Any],
    shapes: Sequence[tuple[int, ...]],
    dtype: np.dtype,
    *sent: Array,
) -> tuple[Array, ...]:
    """Arrays of these shapes from the host, which is sent words and answers words."""
    count = np.dtype(dtype).itemsize // 4
    words = tuple(jax.ShapeDtypeStruct((*shape, count), jnp.uint32) for shape in shapes)
    found = jax.pure_callback(host, words, *sent, vmap_method="broadcast_all")
    return tuple(_from_words(x, dtype) for x in found)


def _to_words(x: Array) -> Array:
    words = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return words if words.ndim > x.ndim else words[..., None]


def _from_words(words: Array, dtype: np.dtype) -> Array:
    return jax.lax.bitcast_convert_type(words if words.shape[-1] > 1 else words[..., 0], dtype)


def _floats(words: Any, dtype: np.dtype) -> np.ndarray:
    """The floats of `_to_words`, as float64 on the host."""
    return np.ascontiguousarray(words).view(dtype)[..., 0].astype(np.float64)


def _words(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """What `_from_words` takes for these floats."""
    return np.array(x, dtype, order="C")[..., None].view(np.uint32)


def check_solver(solver: str) -> None:
    """Raises ValueError for an unknown solver, and where its package is not installed."""
    if solver not in BACKENDS:
        raise ValueError(f"solver is {solver!r}; must be one of {', '.join(BACKENDS)}")
    package = solver.removeprefix("cvxpylayers-")
    if find_spec(package) is None:
        source = "'offload-jax[moreau]'" if package == "moreau" else package
        raise ValueError(
            f"solver is {solver!r}, which needs the package {package}; must be installed: "
            f"pip install {source}"
        )


def _canonicalise(
    problem: cp.Problem,
    parameters: Sequence[cp.Parameter],
    outputs: Sequence[cp.Variable],
    solver: str,
) -> CvxpyLayer:
    check_solver(solver)
    from cvxpy.reductions.solvers.conic_solvers.moreau_conif import MOREAU
    from cvxpylayers.jax import CvxpyLayer

    name = solver.removeprefix("cvxpylayers-").upper()
    # cvxpy 1.9.3 moves rows like x >= 0 into "direct cones", which cvxpylayers 1.2 never reads: the
    # constraint would be gone without a word. Told that there are none, it leaves them alone.
    kinds = MOREAU.__dict__.get("DIR_CONE_KINDS")
    MOREAU.DIR_CONE_KINDS = frozenset()
    try:
        # MOREAU turns on float64 for the whole process unless it is on; here it is on in passing.
        with jax.enable_x64(True):
            _log.info("%s solves in float64 on the host; JAX's own float type stays", name)
            return CvxpyLayer(
                problem, list(parameters), list(outputs), name, solver_args=ARGUMENTS[solver]
            )
    finally:
        if kinds is not None:
            MOREAU.DIR_CONE_KINDS = kinds


class _Host:
    """The layer's NumPy side: parameters to cone programs, and cotangents the way back."""

    def __init__(self, layer: CvxpyLayer, make_backend: Callable[[Any], Backend]) -> None:
        context = layer.ctx
        self._quadratic = context.reduced_P.reduced_mat
        self._linear = context.q.tocsr()
        self._constraint = context.reduced_A.reduced_mat.tocsr()
        self._solver = make_backend(context.solver_ctx)
        self.dual_size, self.primal_size = self._solver.structure.shape
        self._lock = threading.Lock()  # callbacks may come from several threads

    def solve(
        self, packed: Any, active: Any, rough: bool, dtype: np.dtype
    ) -> tuple[np.ndarray, ...]:
        """Primal, dual and residual of each problem; NaN and infinity where one is not finite."""
        given = _floats(packed, dtype)
        lead, flat = given.shape[:-1], given.reshape(-1, given.shape[-1])
        wanted = np.broadcast_to(np.asarray(active), lead).reshape(-1)
        finite = np.isfinite(flat).all(axis=1)
        primal = np.zeros((len(flat), self.primal_size))
        dual = np.zeros((len(flat), self.dual_size))
        residual = np.zeros(len(flat))
        chosen = np.flatnonzero(wanted & finite)
        if len(chosen):
            program = self._program(flat[chosen])
            with self._lock:
                point = self._solver.solve(program, rough)
            primal[chosen], dual[chosen] = point.x, point.z
            residual[chosen] = self._solver.structure.residual(program, point)
        primal[wanted & ~finite], dual[wanted & ~finite] = np.nan, np.nan
        residual[wanted & ~finite] = np.inf
        arrays = (primal, dual, residual)
        return tuple(_words(x.reshape((*lead, *x.shape[1:])), dtype) for x in arrays)

    def pull(self, packed: Any, primal: Any, dual: Any, dtype: np.dtype) -> tuple[np.ndarray]:
        """Cotangents of the parameters, 0 for problems without an answer."""
        given = _floats(packed, dtype)
        flat = given.reshape(-1, given.shape[-1])
        dx = _floats(primal, dtype).reshape(len(flat), -1)
        dz = _floats(dual, dtype).reshape(len(flat), -1)
        pulled = np.zeros(flat.shape)
        moved = (dx != 0).any(axis=1) | (dz != 0).any(axis=1)
        finite = np.isfinite(flat).all(axis=1) & np.isfinite(dx).all(axis=1)
        chosen = np.flatnonzero(moved & finite)
        if len(chosen):
            program = self._program(flat[chosen])
            with self._lock:
                point, changes = self._solver.pull(program, dx[chosen], dz[chosen])
            good = self._solver.structure.residual(program, point) <= MAX_RESIDUAL
            back = self._transpose(changes)
            good &= np.isfinite(back).all(axis=1)
            pulled[chosen] = np.where(good[:, None], back, 0)
        return (_words(pulled.reshape(given.shape), dtype),)

    def _program(self, flat: np.ndarray) -> ConeProgram:
        stack = np.concatenate([flat, np.ones((len(flat), 1))], axis=1, dtype=np.float64).T
        entries = len(self._solver.structure.matrix[0])
        constraint = np.ascontiguousarray((self._constraint @ stack).T)
        bound = np.zeros((len(flat), self.dual_size))
        bound[:, self._solver.structure.bound_rows] = constraint[:, entries:]
        quadratic = np.zeros((len(flat), 0))
        if self._quadratic is not None:
            quadratic = np.ascontiguousarray((self._quadratic @ stack).T)
        linear = np.ascontiguousarray((self._linear @ stack).T[:, :-1])
        # cvxpy writes A x + b in the cone.
        return ConeProgram(quadratic, linear, np.ascontiguousarray(-constraint[:, :entries]), bound)

    def _transpose(self, changes: ConeProgram) -> np.ndarray:
        constraint = np.concatenate(
            [-changes.matrix, changes.bound[:, self._solver.structure.bound_rows]], axis=1
        )
        linear = np.pad(changes.linear, ((0, 0), (0, 1)))
        stack = self._constraint.T @ constraint.T + self._linear.T @ linear.T
        if self._quadratic is not None:
            stack = stack + self._quadratic.T @ changes.quadratic.T
        return stack.T[:, :-1]
