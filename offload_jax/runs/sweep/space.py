"""What one parameter of a sweep may be: the distributions of W&B's sweep format."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from offload_jax.files.checks import ConfigError
from offload_jax.files.plugins import nearest

Scalar = str | int | float | bool | None
Number = int | float  # of a range: whole ends stay whole


@dataclass(frozen=True)
class Space:
    """The values of one parameter."""

    kind: Literal["choice", "int", "float"]
    values: tuple[Scalar, ...] = ()  # of a choice
    low: Number = 0  # of a range, both ends included
    high: Number = 0
    step: Number | None = None
    log: bool = False  # drawn evenly on a logarithmic axis

    @property
    def fixed(self) -> bool:
        return len(self.values) == 1

    def ends(self) -> tuple[Scalar, ...]:
        """The values that are tried on the configuration before a sweep starts."""
        return self.values or (self.low, self.high)

    def grid(self) -> tuple[Scalar, ...] | None:
        """All values, None where these are not countable."""
        if self.values:
            return self.values
        if self.kind == "int":
            return tuple(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            return None
        count = round((self.high - self.low) / self.step)
        return tuple(self.low + i * self.step for i in range(count + 1))


def read_space(entry: Any, path: str) -> Space:
    """The space that an entry of `parameters` describes; `path` names it in errors.

    Raises ConfigError for an unknown distribution or key, and for an impossible range.
    """
    if not isinstance(entry, dict) or not entry:
        raise ConfigError(f"{path} is {entry!r}; must be a mapping, such as {{values: [1, 2]}}")
    name = entry.get("distribution", _implied(entry))
    if name not in DISTRIBUTIONS:
        near = nearest(str(name), list(DISTRIBUTIONS))
        raise ConfigError(
            f"{path}.distribution is {name!r}; must be one of {', '.join(DISTRIBUTIONS)}{near}"
        )
    keys, make = DISTRIBUTIONS[name]
    wrong = set(entry) - {"distribution"} ^ set(keys)
    if wrong:
        raise ConfigError(f"{path} has {', '.join(map(str, entry))}; must have {_listed(keys)}")
    return make({key: entry[key] for key in keys}, path)


def _listed(keys: tuple[str, ...]) -> str:
    return f"{', '.join(keys)}, and may have distribution"


def _implied(entry: Mapping[str, Any]) -> str:
    """The distribution that W&B takes where none is named."""
    if "value" in entry:
        return "constant"
    if "values" in entry:
        return "categorical"
    whole = all(type(entry.get(key)) is int for key in ("min", "max"))
    return "int_uniform" if whole else "uniform"


def _constant(entry: Mapping[str, Any], path: str) -> Space:
    return Space("choice", (_scalar(entry["value"], f"{path}.value"),))


def _categorical(entry: Mapping[str, Any], path: str) -> Space:
    values = entry["values"]
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{path}.values is {values!r}; must be a list of one or more values")
    return Space("choice", tuple(_scalar(v, f"{path}.values[{i}]") for i, v in enumerate(values)))


def _uniform(entry: Mapping[str, Any], path: str) -> Space:
    return Space("float", (), *_range(entry, path))


def _int_uniform(entry: Mapping[str, Any], path: str) -> Space:
    low, high = _range(entry, path)
    for key in ("min", "max"):
        if type(entry[key]) is not int:
            raise ConfigError(f"{path}.{key} is {entry[key]!r}; must be a whole number")
    return Space("int", (), low, high)


def _q_uniform(entry: Mapping[str, Any], path: str) -> Space:
    low, high = _range(entry, path)
    q = _number(entry["q"], f"{path}.q")
    if not 0 < q <= high - low:
        raise ConfigError(f"{path}.q is {q:g}; must be above 0 and at most max - min")
    for key, value in (("min", low), ("max", high)):
        if not math.isclose(value / q, round(value / q), abs_tol=1e-9):
            raise ConfigError(f"{path}.{key} is {value:g}; must be a multiple of q ({q:g})")
    whole = all(type(entry[key]) is int for key in ("min", "max", "q"))
    return Space("int" if whole else "float", (), low, high, step=q)


def _log_uniform_values(entry: Mapping[str, Any], path: str) -> Space:
    low, high = _range(entry, path)
    if low <= 0:
        raise ConfigError(f"{path}.min is {low:g}; must be above 0 on a logarithmic axis")
    return Space("float", (), low, high, log=True)


def _log_uniform(entry: Mapping[str, Any], path: str) -> Space:
    """W&B means exponents of e here, which is easily overlooked."""
    low, high = _range(entry, path)
    if high > 50 or low < -50:
        raise ConfigError(
            f"{path} has min {low:g} and max {high:g}; must be exponents of e in -50..50 (to give "
            "the values themselves: log_uniform_values)"
        )
    return Space("float", (), math.exp(low), math.exp(high), log=True)


# Name of a distribution: the keys that it needs, and what makes its space of them.
DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any], str], Space]]] = {
    "constant": (("value",), _constant),
    "categorical": (("values",), _categorical),
    "int_uniform": (("min", "max"), _int_uniform),
    "uniform": (("min", "max"), _uniform),
    "q_uniform": (("min", "max", "q"), _q_uniform),
    "log_uniform": (("min", "max"), _log_uniform),
    "log_uniform_values": (("min", "max"), _log_uniform_values),
}


def _scalar(value: Any, path: str) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} is {value!r}; must be finite")
    if not isinstance(value, str | int | float | None):  # W&B passes each as --name=value
        raise ConfigError(f"{path} is {value!r}; must be a number, a text, true, false or null")
    scalar: Scalar = value
    return scalar


def _number(value: Any, path: str) -> Number:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        hint = ""
        if isinstance(value, str) and "e" in value.lower():
            hint = (
                f". YAML, as W&B reads it, takes {value} for a text; write it with a point: 1.0e-4"
            )
        raise ConfigError(f"{path} is {value!r}; must be a number{hint}")
    return value


def _range(entry: Mapping[str, Any], path: str) -> tuple[Number, Number]:
    low, high = (_number(entry[key], f"{path}.{key}") for key in ("min", "max"))
    if low >= high:
        raise ConfigError(f"{path}.max is {high:g}; must be above min ({low:g})")
    return low, high


def combinations(spaces: Mapping[str, Space], at_most: int = 32) -> list[dict[str, Scalar]]:
    """Settings at the ends of all spaces together: all of them, or a spread of `at_most`.

    Every end of every space is in at least one of them.
    """
    ends = [space.ends() for space in spaces.values()]
    if math.prod(map(len, ends)) <= at_most:
        chosen = list(itertools.product(*ends))
    else:  # the ends of each space in turn, at different paces
        count = max(at_most, *((j + 1) * len(e) for j, e in enumerate(ends)))
        chosen = [tuple(e[i // (j + 1) % len(e)] for j, e in enumerate(ends)) for i in range(count)]
    return [dict(zip(spaces, values, strict=True)) for values in chosen]
