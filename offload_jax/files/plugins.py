"""Implementations by name: the package's, and a user's own. Data never runs code.

A name is a word of a registry, or `file.py:Name` or `package.module:Name` for something of the
user's own. Own names in what a user gives on the command line are loaded. In files that may come
from somebody else (runs, policies, checkpoints, bundles) they are refused, unless the caller says
which `plugins` may be loaded: files or modules, with or without `:Name`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from offload_jax.files.checks import ConfigError

T = TypeVar("T")
Plugins = Sequence[str] | None  # what of the user's own may be loaded; None: whatever is named

_own: dict[str, Any] = {}  # what has been loaded, by name


def find(
    name: Any,
    registry: Mapping[str, T],
    where: str,
    plugins: Plugins = (),
    folder: Path | None = None,
) -> T:
    """The implementation of that name; `where` is the setting that says it.

    A file is looked for in `folder` first, then where the process runs. Raises ConfigError for an
    unknown name, and for one of the user's own that may not be loaded or is not there.
    """
    if isinstance(name, str) and name in registry:
        return registry[name]
    if isinstance(name, str) and ":" in name:
        return load(name, where, plugins, folder)
    own = ", or your own as file.py:Name or package.module:Name"
    raise ConfigError(
        f"{where} is {name!r}; must be one of {', '.join(registry)}{own}"
        f"{nearest(str(name), list(registry))}"
    )


def load(name: str, where: str, plugins: Plugins, folder: Path | None = None) -> Any:
    """What `file.py:Name` or `package.module:Name` stands for. Raises ConfigError as `find`."""
    source, _, attribute = name.rpartition(":")
    if plugins is not None:
        source = _allowed(name, source, attribute, where, plugins)
    try:
        module, source = _module(source, folder)
    except Exception as error:  # whatever a file of the user's raises
        raise ConfigError(
            f"{where} is {name!r}, which cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        raise ConfigError(f"{where} is {name!r}; {source} must have a {attribute}")
    found = getattr(module, attribute)
    _own[f"{source}:{attribute}"] = found
    return found


def own(of: Callable[[Any], bool]) -> tuple[str, Any]:
    """Name and value of what `of` is true for, among what has been loaded.

    Raises KeyError where there is nothing.
    """
    for name, thing in _own.items():
        if of(thing):
            return name, thing
    raise KeyError("nothing of that kind has been loaded")


def nearest(name: str, allowed: Sequence[str]) -> str:
    """A hint for a misspelt word, empty where nothing is near."""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def _allowed(name: str, source: str, attribute: str, where: str, plugins: Sequence[str]) -> str:
    """The file or module among `plugins` that the name means."""
    for plugin in plugins:
        given, _, only = plugin.partition(":")
        same = Path(given).name == Path(source).name if source.endswith(".py") else given == source
        if same and only in ("", attribute):
            return given
    raise ConfigError(
        f"{where} is {name!r}, code that is not of offload-jax; files run no code unless you say "
        f"so: --plugins {source} (in Python plugins=[{source!r}])"
    )


def _module(source: str, folder: Path | None) -> tuple[ModuleType, str]:
    """A module, and the name it will be found by from elsewhere, too."""
    if not source.endswith(".py"):
        return importlib.import_module(source), source
    path = Path(source)
    if folder is not None and (folder / path).is_file():
        path = folder / path
    path = path.resolve()
    key = f"offload_jax_plugin:{path}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module  # before it runs: dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[key]
            raise
    return sys.modules[key], str(path)
