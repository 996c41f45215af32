"""The import law: a module imports only modules listed above it, wherever the import stands."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

PACKAGE = "offload_jax"
ROOT = Path(__file__).resolve().parents[1]

# The modules from the ground up; a new one goes directly above the first that imports it.
# A folder's own name stands for its __init__.py and comes last of its files.
LAYERS = (
    "types",
    "checks",
    "fields",
    "documents",
    "json_schema",
    "schema",
    "segments",
    "instance",
    "scenario.paper",
    "scenario.edge",
    "scenario.mixture",
    "scenario",
    "model",
    "splits.problem",
    "splits.dual",
    "splits.implicit",
    "splits.cones",
    "splits.layer",
    "splits.rules",
    "splits.program",
    "splits.conic",
    "splits.rounding",
    "splits",
    "value",
    "gains",
    "whole",
    "margins",
    "advice",
    "plans",
    "soft",
    "env",
    "features",
    "networks",
    "rollout",
    "expected",
    "policies",
    "baselines.exact",
    "baselines.heuristics",
    "baselines.enumeration",
    "baselines.relaxation",
    "baselines.bound",
    "baselines.levels",
    "baselines.scip_program",
    "baselines.scip",
    "baselines.moves",
    "baselines.search",
    "baselines.local_search",
    "baselines.tabu",
    "baselines.annealing",
    "baselines.genetic",
    "baselines",
    "decoding",
    "testsets",
    "losses",
    "mesh",
    "hyperparameters",
    "objective",
    "learner",
    "faults",
    "manifest",
    "saved",
    "checkpoint",
    "tracking",
    "uploader",
    "mirror_process",
    "courier",
    "mirror",
    "certificate",
    "comparison",
    "evaluation",
    "study",
    "charts",
    "figures",
    "page",
    "report",
    "config",
    "shipped",
    "folders",
    "processes",
    "reporting",
    "validation",
    "loop",
    "runs",
    "population",
    "population_loop",
    "deploy",  # an island: all of its files stand here
    "programs",
    "artifacts",
    "export",
    "sweep.space",
    "sweep.spec",
    "sweep.trials",
    "sweep.workers",
    "sweep.picture",
    "sweep.report",
    "sweep.runner",
    "sweep",
    "commands.train",
    "commands.progress",
    "commands.sources",
    "commands.results",
    "commands.options",
    "commands.evaluate",
    "commands.info",
    "commands.pack",
    "commands.export",
    "commands.verify",
    "commands.serve",
    "commands.sync",
    "commands.testset",
    "commands.advise",
    "commands.sweep",
    "commands",
    "cli",
    "__main__",
    "hybrid",  # an island; nothing stands above it, so nothing imports it
)

# Folders with a life of their own: what they may import besides themselves.
ISLANDS = {
    "deploy": ("fields", "documents", "schema", "manifest"),
    "hybrid": ("documents", "schema", "instance", "scenario", "model"),
}

# Third parties that are slow, or reach out of the process: imported in these files only.
HOMES = {
    "wandb": ("uploader",),
    "cvxpy": ("splits.cones", "splits.layer", "splits.program"),
    "cvxpylayers": ("splits.layer",),
    "diffcp": ("splits.cones",),
    "moreau": ("splits.cones",),
    "fastapi": ("deploy.service",),
    "iree": ("artifacts", "deploy.runtimes"),
    "matplotlib": ("charts", "figures", "sweep.picture"),
    "pyscipopt": ("baselines.scip_program",),
    "orbax": ("checkpoint", "saved"),
    "optuna": ("sweep.trials",),
}


def module_name(path: Path) -> str:
    """'splits.dual' for splits/dual.py, 'splits' for splits/__init__.py, '' for the face."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
MODULES = [name for name in FILES if name]  # the face, "", is lazy and may name anything


def imported_names(source: str, module: str, is_folder: bool) -> Iterator[str]:
    """Full dotted names that a file imports at any depth: `from a import b` gives 'a.b'."""
    here = [PACKAGE, *filter(None, module.split("."))]
    if not is_folder:
        here.pop()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=base, names=names, level=level):
                folder = here[: len(here) - level + 1] if level else []
                prefix = ".".join([*folder, *([base] if base else [])])
                yield from (f"{prefix}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def place(module: str) -> str:
    """The entry of LAYERS that a module belongs to: itself, or its island."""
    top = module.split(".")[0]
    return top if top in ISLANDS else module


def owner(name: str, known: set[str]) -> str | None:
    """The module of this package that a dotted name belongs to; '' is the face, None a stranger."""
    if name != PACKAGE and not name.startswith(PACKAGE + "."):
        return None
    inner = name.removeprefix(PACKAGE).removeprefix(".")
    while inner and inner not in known:
        inner = inner.rpartition(".")[0]
    return inner


def dependencies(module: str) -> set[str]:
    """Modules of this package that a module imports."""
    path, known = FILES[module], set(LAYERS) | set(FILES)
    names = imported_names(path.read_text(), module, path.name == "__init__.py")
    return {found for name in names if (found := owner(name, known)) is not None} - {module}


def offence(module: str, imported: str) -> str | None:
    """Why `module` may not import `imported`, or None where it may."""
    if imported == "":
        return f"{module} imports the public face {PACKAGE}/__init__.py: name the module instead"
    mine, theirs = place(module), place(imported)
    if mine == theirs and mine in ISLANDS:
        return None
    if mine in ISLANDS and theirs not in ISLANDS[mine]:
        return f"{module} imports {imported}; {mine}/ may import only itself and {ISLANDS[mine]}"
    if LAYERS.index(theirs) > LAYERS.index(mine):
        return f"{module} imports {imported}, which is above it (LAYERS in tests/test_layers.py)"
    return None


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_place(module):
    assert place(module) in LAYERS, (
        f"{FILES[module].relative_to(ROOT)} has no place yet: add {module!r} to LAYERS in "
        "tests/test_layers.py, directly above the first module that imports it"
    )


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    if place(module) not in LAYERS:
        pytest.fail(f"{module!r} is not in LAYERS: see test_every_module_has_its_place")
    placed = {other for other in dependencies(module) if place(other) in ("", *LAYERS)}
    assert not [text for other in sorted(placed) if (text := offence(module, other))]


def test_no_cycles():
    order = graphlib.TopologicalSorter({module: dependencies(module) for module in MODULES})
    assert set(MODULES) <= set(order.static_order())  # a CycleError names the cycle


@pytest.mark.parametrize("module", FILES, ids=lambda module: module or PACKAGE)
def test_third_parties_stay_at_home(module):
    path = FILES[module]
    names = imported_names(path.read_text(), module, path.name == "__init__.py")
    roots = {name.split(".")[0] for name in names}
    strays = {root: home for root, home in HOMES.items() if root in roots and module not in home}
    assert not strays, f"{module} imports {strays}: each belongs in the files named there"


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


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import offload_jax.env", "env"),
        ("import offload_jax.env as env", "env"),
        ("from offload_jax.env import step", "env"),
        ("from offload_jax import env", "env"),
        ("from offload_jax import Instance", ""),
        ("import offload_jax as oj", ""),
        ("from . import problem", "splits.problem"),
        ("from .problem import SplitProblem", "splits.problem"),
        ("from .. import env", "env"),
        ("from ..env import step", "env"),
        ("def f():\n    from offload_jax.env import step", "env"),
        ("if TYPE_CHECKING:\n    from offload_jax.env import State", "env"),
        ("importlib.import_module('offload_jax.env')", "env"),
        ("from offload_jax.splits import solve_splits", "splits"),
        ("from offload_jax.splits import problem", "splits.problem"),
        ("import offload_jaxed", None),
        ("import jax", None),
    ],
)
def test_every_form_of_import_is_seen(source, found):
    [name] = imported_names(source, "splits.dual", is_folder=False)
    assert owner(name, set(LAYERS)) == found


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("env", "value", True),
        ("value", "env", False),
        ("model", "", False),
        ("splits", "splits.rounding", True),
        ("splits.dual", "splits", False),
        ("cli", "deploy.serve", True),
        ("cli", "hybrid.sampler", False),
        ("deploy.serve", "deploy.bundle", True),
        ("deploy.serve", "schema", True),
        ("deploy.serve", "types", False),
        ("hybrid.sampler", "model", True),
        ("hybrid.sampler", "value", False),
    ],
)
def test_the_law_itself(module, imported, allowed):
    assert (offence(module, imported) is None) == allowed
