"""The house: a room imports only from rooms below it, and no files import each other in a circle.

An import counts wherever it stands, inside functions and under TYPE_CHECKING, too.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.fast
PACKAGE = "offload_jax"

# From the ground up. Rooms of one line do not see each other.
LADDER = (
    ("files",),
    ("problem",),
    ("splits",),
    ("plans",),
    ("env",),
    ("policy",),
    ("methods",),
    ("learning", "evaluation"),
    ("runs",),
    ("deploy",),
    ("export",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
# Rooms that also run without the rest: all that they may import besides themselves.
ALONE = {"files": (), "deploy": ("files",)}

# Third parties that are slow, or reach out of the process: imported in these files only.
HOMES = {
    "chex": ("problem.contracts", "runs.checked"),
    "wandb": ("runs.tracking.wandb_process",),
    "cvxpy": ("splits.cones", "splits.layer", "splits.qp"),
    "cvxpylayers": ("splits.layer",),
    "diffcp": ("splits.cones",),
    "moreau": ("splits.cones",),
    "fastapi": ("deploy.service",),
    "iree": ("export.artifacts", "deploy.runtimes"),
    "matplotlib": ("evaluation.figures", "evaluation.timeline", "runs.sweep.picture"),
    "pyscipopt": ("methods.scip_program",),
    "orbax": ("runs.checkpoint", "runs.restore"),
    "optuna": ("runs.sweep.storage", "runs.sweep.trials"),
}


def modules() -> dict[str, Path]:
    """Every file of the repository that can be imported, by its dotted name."""
    found = {}
    for folder, root in ((PACKAGE, ROOT), ("benchmarks", ROOT), ("tests/helpers", None)):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(root or ROOT / folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = modules()
MINE = [name for name in FILES if name.startswith(f"{PACKAGE}.")]  # the face is lazy: see below


def imported_names(source: str) -> Iterator[str]:
    """Full dotted names that a file imports at any depth: `from a import b` gives 'a.b'."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=base, names=names, level=0):
                yield from (f"{base}.{alias.name}" for alias in names)
            case ast.ImportFrom(module=base, names=names, level=level):
                dots = "." * level + (base or "")
                raise AssertionError(f"from {dots} import ...: write the whole name")
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def owner(name: str) -> str | None:
    """The file of this repository that a dotted name belongs to; None for a stranger."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or None


def dependencies(module: str) -> set[str]:
    """Files of this repository that a file imports."""
    found = map(owner, imported_names(FILES[module].read_text(encoding="utf-8")))
    return {name for name in found if name is not None} - {module}


def room(module: str) -> str:
    return module.split(".")[1]


def floor(name: str) -> int:
    return next((i for i, rooms in enumerate(LADDER) if name in rooms), -1)


def offence(mine: str, theirs: str) -> str | None:
    """Why a file of the room `mine` may not import from the room `theirs`; None where it may."""
    if mine == theirs:
        return None
    if mine in ALONE and theirs not in ALONE[mine]:
        return f"{mine} imports {theirs}; {mine}/ may import only itself and {ALONE[mine]}"
    if floor(theirs) >= floor(mine):
        return f"{mine} imports {theirs}, which is not below it (LADDER in tests/test_layers.py)"
    return None


@pytest.mark.parametrize("module", MINE)
def test_imports_point_down(module):
    assert floor(room(module)) >= 0, f"{room(module)} has no place in LADDER (tests/test_layers.py)"
    imported = [name for name in dependencies(module) if name.split(".")[0] == PACKAGE]
    assert PACKAGE not in imported, f"{module} imports the public face: name the module instead"
    assert not [text for name in imported if (text := offence(room(module), room(name)))]


def test_no_circles():
    graph = {name: dependencies(name) for name in FILES if name != PACKAGE}
    order = graphlib.TopologicalSorter(graph)
    assert set(graph) <= set(order.static_order())  # a CycleError names the circle


@pytest.mark.parametrize("module", [PACKAGE, *MINE])
def test_third_parties_stay_at_home(module):
    roots = {name.split(".")[0] for name in imported_names(FILES[module].read_text("utf-8"))}
    inner = module.removeprefix(f"{PACKAGE}.")
    strays = {root: home for root, home in HOMES.items() if root in roots and inner not in home}
    assert not strays, f"{module} imports {strays}: each belongs in the files named there"


def test_homes_exist():
    assert {f"{PACKAGE}.{name}" for names in HOMES.values() for name in names} <= FILES.keys()


def test_importing_the_package_is_light():
    """A fresh `import offload_jax` loads none of HOMES and starts no device backend."""
    probe = f"""
import sys
import {PACKAGE}
heavy = sorted(set({sorted(HOMES)}) & set(sys.modules))
assert not heavy, f"imported with the package: {{heavy}}"
if "jax" in sys.modules:
    from jax._src import xla_bridge
    assert not xla_bridge._backends, f"backends started: {{list(xla_bridge._backends)}}"
"""
    run = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_name_of_the_face_is_where_it_says():
    """What runs (`_HOMES`) is what type checkers see, and every name is there."""
    import offload_jax as face

    source = FILES[PACKAGE].read_text(encoding="utf-8")
    seen = {name for name in imported_names(source) if name.startswith(f"{PACKAGE}.")}
    assert seen == {f"{PACKAGE}.{home}.{name}" for name, home in face._HOME.items()}
    assert all(getattr(face, name) is not None for name in face.__all__)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import offload_jax.env.step", "env.step"),
        ("import offload_jax.env.step as env", "env.step"),
        ("from offload_jax.env.step import reset", "env.step"),
        ("from offload_jax.env import step", "env.step"),
        ("from offload_jax import env", "env"),
        ("def f():\n    from offload_jax.env.step import reset", "env.step"),
        ("if TYPE_CHECKING:\n    from offload_jax.env.state import State", "env.state"),
        ("importlib.import_module('offload_jax.env.step')", "env.step"),
        ("from offload_jax.splits import solve_splits", "splits"),
        ("from offload_jax.splits import problem", "splits.problem"),
    ],
)
def test_every_form_of_import_is_seen(source, found):
    [name] = imported_names(source)
    assert owner(name) == f"{PACKAGE}.{found}"


@pytest.mark.parametrize("source", ["import offload_jaxed", "import jax"])
def test_strangers_are_strangers(source):
    [name] = imported_names(source)
    assert owner(name) is None


@pytest.mark.parametrize(
    ("mine", "theirs", "allowed"),
    [
        ("env", "plans", True),
        ("plans", "env", False),
        ("learning", "evaluation", False),
        ("evaluation", "learning", False),
        ("runs", "evaluation", True),
        ("deploy", "files", True),
        ("deploy", "problem", False),
        ("export", "deploy", True),
        ("commands", "export", True),
        ("export", "commands", False),
    ],
)
def test_the_law_itself(mine, theirs, allowed):
    assert (offence(mine, theirs) is None) == allowed
