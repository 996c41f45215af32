"""Implementations by name: the package's, and a user's own. Data never runs code.

A name is a word of a registry, or `file.py:Name` or `package.module:Name` for something of the
user's own. Own names in what a user gives on the command line are loaded. In files that may come
from somebody else (runs, policies, checkpoints, bundles) they are refused, unless the caller says
which `plugins` may be loaded: files or modules, with or without `:Name`. Then it is the caller's
file that is loaded, wherever the data says that a file of this name is.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from offload_jax.files.checks import ConfigError

T = TypeVar("T")
Plugins = Sequence[str] | None  # what of the user's own may be loaded; None: whatever is named

_own: dict[str, Any] = {}  # what has been loaded, by its full name


def is_own(name: Any) -> bool:
    """Whether a name is one for something of the user's own."""
    return isinstance(name, str) and ":" in name


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
    if is_own(name):
        return load(name, where, plugins, folder)
    own = ", or your own as file.py:Name or package.module:Name"
    raise ConfigError(
        f"{where} is {name!r}; must be one of {', '.join(registry)}{own}"
        f"{nearest(str(name), list(registry))}"
    )


def load(name: str, where: str, plugins: Plugins, folder: Path | None = None) -> Any:
    """What `file.py:Name` or `package.module:Name` stands for. Raises ConfigError as `find`."""
    check_allowed({where: name}, plugins)
    source, _, attribute = name.rpartition(":")
    if plugins is not None:  # the caller's file, not one that lies beside the data
        source, folder = _allowed(name, plugins) or source, None
    said = f"{where} is {name!r}"
    source = _located(source, folder, said)
    full = f"{source}:{attribute}"
    if full not in _own:
        try:
            module = _module(source)
        except (Exception, SystemExit) as error:  # whatever a file of the user's raises
            reason = _reason(error, source)
            raise ConfigError(f"{said}, which cannot be loaded: {reason}") from error
        if not hasattr(module, attribute):
            names = [one for one in vars(module) if not one.startswith("_")]
            near = nearest(attribute, names)
            raise ConfigError(f"{said}; {source} must have a {attribute}{near}")
        _own[full] = getattr(module, attribute)
    return _own[full]


def check_allowed(named: Mapping[str, str], plugins: Plugins) -> None:
    """Raises ConfigError where own code is named, by setting, that is not among the plugins."""
    if plugins is None:
        return
    refused = {where: name for where, name in named.items() if _allowed(name, plugins) is None}
    for where, name in refused.items():
        given = [plugin.rpartition(":")[0] or plugin for plugin in plugins]
        needed = [*dict.fromkeys([*given, *sources(refused.values())])]
        raise ConfigError(
            f"{where} is {name!r}, code that is not of offload-jax; files run no code unless you "
            f"say so: {option(needed)} (in Python plugins={needed!r})"
        )


def sources(names: Iterable[str]) -> list[str]:
    """The files and modules of own names, each once."""
    return [*dict.fromkeys(name.rpartition(":")[0] for name in names)]


def option(plugins: Sequence[str]) -> str:
    """The option of a command line that allows these plugins; empty for none."""
    return f"--plugins {shlex.join(plugins)}" if plugins else ""


def name_of(thing: Any, what: str) -> str:
    """The full name of something of the user's own, by which it is found again.

    Of what was not loaded by name, as in a script: where it is defined. Raises ConfigError, saying
    `what` it is, for what no other process could find.
    """
    for name, one in _own.items():
        if one is thing:
            return name
    module = sys.modules.get(thing.__module__)
    file, name = getattr(module, "__file__", None), thing.__qualname__
    whole = thing.__module__ if "." in thing.__module__ else file and str(Path(file).resolve())
    if not whole or "<" in name:
        raise ConfigError(
            f"{what} is {name} of {thing.__module__}; must be at the top of a file or a module, "
            "where a run that goes on finds it"
        )
    _own[f"{whole}:{name}"] = thing
    return f"{whole}:{name}"


def loaded(of: Callable[[Any], bool]) -> tuple[str, Any] | None:
    """Name and value of what `of` is true for, among what has been loaded."""
    return next(((name, thing) for name, thing in _own.items() if of(thing)), None)


def check_class(found: Any, protocol: type, said: str) -> None:
    """Raises ConfigError, which `said` begins, unless a class has all that the protocol has."""
    if not isinstance(found, type):
        raise ConfigError(f"{said}; must be a class, is {type(found).__name__}")
    declared = [*vars(protocol), *vars(protocol).get("__annotations__", ())]
    wanted = [name for name in declared if not name.startswith("_")]
    known = getattr(found, "__dataclass_fields__", {})  # some have no value in the class
    lacking = [name for name in wanted if not hasattr(found, name) and name not in known]
    lacking += getattr(found, "__abstractmethods__", ())
    if lacking:
        raise ConfigError(
            f"{said}; {found.__name__} lacks {', '.join(lacking)}; must have all that "
            f"{protocol.__module__}.{protocol.__name__} has"
        )


def check_frozen(found: Any, said: str) -> None:
    """Raises ConfigError, which `said` begins, unless this is a frozen dataclass."""
    if not isinstance(found, type):
        raise ConfigError(f"{said}; must be a class, is {type(found).__name__}")
    parameters = vars(found).get("__dataclass_params__")  # its own, none that it inherits
    if parameters is None or not parameters.frozen:
        raise ConfigError(f"{said}; {found.__name__} must be a @dataclass(frozen=True)")


def check_record(found: Any, protocol: type, said: str) -> None:
    """Raises ConfigError unless this is a frozen dataclass with all that the protocol has."""
    check_frozen(found, said)
    check_class(found, protocol, said)


def nearest(name: str, allowed: Sequence[str]) -> str:
    """A hint for a misspelt word, empty where nothing is near."""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def _allowed(name: str, plugins: Sequence[str]) -> str | None:
    """The file or module among `plugins` that the name means."""
    source, _, attribute = name.rpartition(":")
    for plugin in plugins:
        given, colon, only = plugin.rpartition(":")
        given, only = (given, only) if colon else (plugin, "")
        same = Path(given).name == Path(source).name if source.endswith(".py") else given == source
        if same and only in ("", attribute):
            return given
    return None


def _located(source: str, folder: Path | None, said: str) -> str:
    """The name of a module, or the absolute path of a file."""
    if not source.endswith(".py"):
        return source
    places = [place / source for place in (folder, Path()) if place is not None]
    for path in places:
        if path.is_file():
            return str(path.resolve())
    looked = " or ".join(str(path.resolve()) for path in dict.fromkeys(places))
    raise ConfigError(f"{said}; there is no file {looked}")


def _module(source: str) -> ModuleType:
    """A module by its name, or of the file at an absolute path."""
    if not source.endswith(".py"):
        return importlib.import_module(source)
    key = f"offload_jax_plugin:{source}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module  # before it runs: dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[key]
            raise
    return sys.modules[key]


def _reason(error: BaseException, source: str) -> str:
    """What a file of the user's raised, in one line, and where."""
    lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == source]
    place = f"line {lines[-1]}: " if lines else ""
    return f"{place}{type(error).__name__}: {' '.join(str(error).split())}"
