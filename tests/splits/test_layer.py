"""Any cvxpy problem in the graph: right values and gradients under every transform, and every trap
that cvxpylayers, MOREAU and DIFFCP hold ready, each told from a right answer."""

from __future__ import annotations

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cvxpylayers.jax import CvxpyLayer

from offload_jax.splits.layer import ConeLayer

SOLVERS = ("cvxpylayers-moreau", "cvxpylayers-diffcp")
SIZE = 5
EXACT = {"solver": "CLARABEL", "tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9}


def problem() -> tuple[cp.Problem, list[cp.Parameter], cp.Variable, cp.Constraint]:
    """Project a point onto the part of a half space that is not negative: x >= 0 often binds."""
    x, point, normal, offset = cp.Variable(SIZE), *map(cp.Parameter, (SIZE, SIZE, 1))
    half = normal @ x >= offset
    aim = cp.Minimize(0.5 * cp.sum_squares(x) - point @ x)
    return cp.Problem(aim, [x >= 0, half]), [point, normal, offset], x, half


def layer(solver: str) -> ConeLayer:
    made, parameters, x, half = problem()
    return ConeLayer(made, parameters, [x, half.dual_variables[0]], solver)


@pytest.fixture(scope="module", params=SOLVERS)
def solve(request) -> ConeLayer:
    return layer(request.param)


def numbers(count: int = 12) -> tuple[np.ndarray, ...]:
    draw = np.random.default_rng(0)
    normal = draw.uniform(0.5, 1, (count, SIZE))
    return draw.normal(size=(count, SIZE)), normal, draw.uniform(0.2, 1.5, (count, 1))


def expected(point: np.ndarray, normal: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The same by cvxpy itself and Clarabel, one problem."""
    made, parameters, x, _ = problem()
    for parameter, value in zip(parameters, (point, normal, offset), strict=True):
        parameter.value = value
    made.solve(**EXACT)
    return x.value


def test_values_are_those_of_cvxpy(x64, solve) -> None:
    """Rows like x >= 0 count: cvxpy 1.9.3 hides them from cvxpylayers with MOREAU."""
    given = numbers()
    answer = solve(*map(jnp.asarray, given))
    wanted = np.stack([expected(*row) for row in zip(*given, strict=True)])
    assert np.mean(wanted < 1e-6) > 0.2  # x >= 0 does bind
    np.testing.assert_allclose(answer.values[0], wanted, atol=1e-5)
    assert np.all(answer.solved)
    assert answer.residual.max() <= 1e-6


def test_every_transform_agrees(x64, solve) -> None:
    given = tuple(map(jnp.asarray, numbers()))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(12, SIZE)))

    def one(point, normal, offset, weight):
        answer = solve(point, normal, offset)
        return jnp.sum(weight * answer.values[0]) + jnp.sum(answer.values[1])

    base = solve(*given)
    value = jnp.sum(weights * base.values[0], axis=1) + base.values[1][:, 0]
    pull = jax.grad(one, argnums=(0, 1, 2))
    each = [pull(*(x[i] for x in (*given, weights))) for i in range(12)]
    slope = [jnp.stack(parts) for parts in zip(*each, strict=True)]

    pairs = [x.reshape(3, 4, *x.shape[1:]) for x in (*given, weights)]
    flat = lambda tree: jax.tree.map(lambda x: x.reshape(12, *x.shape[2:]), tree)  # noqa: E731
    both = jax.value_and_grad(one, argnums=(0, 1, 2))
    ways = {
        "vmap": jax.vmap(both)(*given, weights),
        "jit of vmap": jax.jit(jax.vmap(both))(*given, weights),
        "vmap of vmap": flat(jax.jit(jax.vmap(jax.vmap(both)))(*pairs)),
        "batched": (value, jax.grad(
            lambda *p: jnp.sum(jax.vmap(one)(*p, weights)), argnums=(0, 1, 2))(*given)),
        "scan": flat(jax.jit(lambda *p: jax.lax.scan(
            lambda _, row: (None, jax.vmap(both)(*row)), None, p)[1])(*pairs)),
    }  # fmt: skip
    for name, (found, slopes) in ways.items():
        np.testing.assert_allclose(found, value, atol=1e-7, err_msg=name)
        for mine, wanted in zip(slopes, slope, strict=True):
            np.testing.assert_allclose(mine, wanted, atol=1e-5, err_msg=name)


def test_gradient_of_a_scan_is_that_of_differences(x64, solve) -> None:
    """Four calls before the first backward pass: a layer that kept state would answer wrongly."""
    point, normal, offset = map(jnp.asarray, numbers(4))

    def chain(point):
        def call(shift, row):
            x = solve(row[0] + shift, row[1], row[2]).values[0]
            return 0.3 * x, jnp.sum(x**2)

        return jnp.sum(jax.lax.scan(call, jnp.zeros(SIZE), (point, normal, offset))[1])

    along = np.random.default_rng(2).normal(size=point.shape)
    found = jnp.sum(jax.jit(jax.grad(chain))(point) * along)
    go = jax.jit(chain)
    wanted = (go(point + 1e-3 * along) - go(point - 1e-3 * along)) / 2e-3
    np.testing.assert_allclose(found, wanted, rtol=5e-4)


def test_infeasible_and_broken_rows_harm_no_other(x64, solve) -> None:
    point, normal, offset = numbers()
    normal[3] = -1.0  # with x >= 0 and a positive offset: nothing is left
    point[5, 2], offset[7] = np.nan, np.inf
    bad = np.isin(np.arange(12), (3, 5, 7))
    given = tuple(map(jnp.asarray, (point, normal, offset)))

    def total(*p):
        answer = solve(*p)
        return jnp.sum(jnp.where(answer.solved[:, None], answer.values[0], 0)), answer

    slopes, answer = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*given)
    np.testing.assert_array_equal(answer.solved, ~bad)
    assert np.all(answer.residual[bad] > 1e-3)
    clean = solve(*(jnp.asarray(x)[~bad] for x in (point, normal, offset)))
    np.testing.assert_allclose(answer.values[0][~bad], clean.values[0], atol=1e-7)
    assert all(np.all(np.asarray(x)[bad] == 0) for x in slopes)
    assert all(np.all(np.isfinite(x)) for x in slopes)


def test_inactive_problems_are_not_solved(solve) -> None:
    given = tuple(map(jnp.asarray, numbers()))
    active = jnp.arange(12) % 2 == 0
    answer = solve(*given, active=active)
    np.testing.assert_array_equal(answer.values[0][1::2], 0)
    np.testing.assert_allclose(answer.values[0][::2], solve(*given).values[0][::2], atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_float32_stays_and_each_layer_is_its_own(name) -> None:
    """MOREAU turns float64 on for the process; a second layer on one problem answers wrongly."""
    first, second = layer(name), layer(name)
    assert not jax.config.jax_enable_x64
    given = tuple(jnp.asarray(x, jnp.float32) for x in numbers())
    answers = [jax.jit(made.__call__)(*given) for made in (first, second, first)]
    assert not jax.config.jax_enable_x64
    for answer in answers:
        assert answer.values[0].dtype == answer.residual.dtype == jnp.float32
        np.testing.assert_allclose(answer.values[0], answers[0].values[0], atol=1e-6)
    made, parameters, x, half = problem()
    ConeLayer(made, parameters, [x], name)
    with pytest.raises(ValueError, match="problem belongs to another layer"):
        ConeLayer(made, parameters, [half.dual_variables[0]], name)


def test_misuse_is_told() -> None:
    made = layer("cvxpylayers-diffcp")
    given = tuple(map(jnp.asarray, numbers()))
    with pytest.raises(ValueError, match=r"values have shapes .*; must be \[\(12, 5\), "):
        made(*given[:2])
    with pytest.raises(ValueError, match=r"values have shapes .*; must be"):
        made(given[0], given[1], given[2][:4])
    other, parameters, x, _ = problem()
    with pytest.raises(ValueError, match="solver is 'ECOS'; must be one of cvxpylayers-moreau"):
        ConeLayer(other, parameters, [x], "ECOS")
    matrix, target = cp.Variable((2, 2), symmetric=True), cp.Parameter((2, 2))
    whole = cp.Problem(cp.Minimize(cp.sum_squares(matrix - target)))
    with pytest.raises(ValueError, match="problem has a symmetric matrix"):
        ConeLayer(whole, [target], [matrix], "cvxpylayers-diffcp")
    scale, product = cp.Parameter(), cp.Parameter()
    bent = cp.Problem(cp.Minimize(cp.sum_squares(x)), [x >= scale * product])
    with pytest.raises(ValueError, match="DPP"):
        ConeLayer(bent, [scale, product], [x], "cvxpylayers-diffcp")


def test_float64_of_one_thread_is_not_cut_down() -> None:
    """Callbacks run in threads that do not share `jax.enable_x64`."""
    given = numbers(200)
    for name in SOLVERS:
        with jax.enable_x64(True):
            answer = jax.jit(layer(name).__call__)(*map(jnp.asarray, given))
            wanted = np.stack([expected(*row) for row in zip(*given, strict=True)][:8])
            assert answer.values[0].dtype == jnp.float64
            np.testing.assert_allclose(answer.values[0][:8], wanted, atol=1e-5)
            assert np.median(answer.residual) <= 1e-9  # float32 numbers would have 1e-7


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("cvxpylayers-moreau", "MOREAU", {"solver": "ipm"}),
        ("cvxpylayers-diffcp", "DIFFCP", {"solve_method": "Clarabel"}),
    ],
)
def test_cvxpylayers_itself_agrees(x64, name, theirs, options) -> None:
    """Its own calls where they work: MOREAU's in float64, DIFFCP's outside of jit.

    With x >= a parameter in place of x >= 0, which MOREAU would lose.
    """
    x, point, normal, offset = cp.Variable(SIZE), *map(cp.Parameter, (SIZE, SIZE, 1))
    zero = cp.Parameter(SIZE)
    aim = cp.Minimize(0.5 * cp.sum_squares(x) - point @ x)
    made = cp.Problem(aim, [x >= zero, normal @ x >= offset])
    plain = CvxpyLayer(made, [point, normal, offset, zero], [x], theirs, solver_args=options)
    ours, zeros, given = layer(name), jnp.zeros((12, SIZE)), tuple(map(jnp.asarray, numbers()))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(12, SIZE)))
    slopes = jax.grad(lambda *p: jnp.sum(weights * plain(*p, zeros)[0]), argnums=(0, 1, 2))
    mine = jax.grad(lambda *p: jnp.sum(weights * ours(*p).values[0]), argnums=(0, 1, 2))
    np.testing.assert_allclose(ours(*given).values[0], plain(*given, zeros)[0], atol=2e-4)
    for a, b in zip(mine(*given), slopes(*given), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_the_traps_are_still_there(x64) -> None:
    """What the layer works around. Where one is gone, its workaround may go, too."""
    made, parameters, x, _ = problem()
    plain = CvxpyLayer(made, parameters, [x], "MOREAU", solver_args={"solver": "ipm"})
    given = tuple(map(jnp.asarray, numbers()))
    lost = np.asarray(plain(*given)[0]).min()
    assert lost < -0.1, "MOREAU no longer loses x >= 0"

    made, parameters, x, _ = problem()
    eager = CvxpyLayer(made, parameters, [x], "DIFFCP")
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(eager.__call__)(*given)


def test_matrices_and_cones(x64, solve) -> None:
    """Parameters with two axes are read by columns; second-order cones are differentiated."""
    name = SOLVERS[0] if "Moreau" in type(solve._host._solver).__name__ else SOLVERS[1]
    x, matrix, target = cp.Variable(3), cp.Parameter((4, 3)), cp.Parameter(4)
    made = cp.Problem(cp.Minimize(cp.norm2(matrix @ x - target) + 0.1 * cp.sum_squares(x)))
    norm = ConeLayer(made, [matrix, target], [x], name)
    draw = np.random.default_rng(4)
    a, b = draw.normal(size=(6, 4, 3)), draw.normal(size=(6, 4))
    found = norm(jnp.asarray(a), jnp.asarray(b))
    for i in range(6):
        matrix.value, target.value = a[i], b[i]
        made.solve(solver="CLARABEL")
        np.testing.assert_allclose(found.values[0][i], x.value, atol=1e-4)
    total = jax.jit(lambda a, b: jnp.sum(jnp.cos(norm(a, b).values[0]), axis=1))
    slope = jax.jit(jax.grad(lambda a: jnp.sum(total(a, b))))(jnp.asarray(a))
    along = draw.normal(size=a.shape)
    wanted = (total(a + 1e-3 * along, b) - total(a - 1e-3 * along, b)) / 2e-3
    np.testing.assert_allclose(np.sum(slope * along, axis=(1, 2)), wanted, rtol=5e-3, atol=2e-3)
