"""Bundles from policies: their programs for every runtime, and all that is needed to trust them."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from offload_jax.deploy import ENTRIES, Bundle, ports
from offload_jax.deploy.bundle import FORMAT, VERSION, open_bundle, zip_bundle
from offload_jax.deploy.decide import ANSWER_HEADER
from offload_jax.env.config import EnvConfig
from offload_jax.export.artifacts import (
    IREE_BATCHES,
    PLATFORMS,
    ExportConfig,
    check_packages,
    compile_for_iree,
    portable,
)
from offload_jax.export.programs import least_users, programs
from offload_jax.files import disk
from offload_jax.files.checks import ConfigError
from offload_jax.files.json_schema import DIALECT, json_schema
from offload_jax.files.records import (
    INSTANCE,
    INSTANCE_HEADER,
    PLAN,
    PLAN_HEADER,
    InstanceRecord,
    instance_to_json,
)
from offload_jax.policy.policy import Policy
from offload_jax.problem.instance import Instance, taken, to_record
from offload_jax.problem.scenario import sample_many
from offload_jax.runs.config import TrainConfig
from offload_jax.splits import NATIVE

SAMPLED = 16_384  # instances that the trained ranges are taken from
MARGIN = 0.05  # added to both ends of a range, as a share of it
VECTORS = 32  # a multiple of what a call takes


def write_bundle(
    out: Path,
    policy: Policy,
    config: TrainConfig,
    about: Mapping[str, Any],
    card: str,
    wanted: ExportConfig,
    say: Callable[[str], None] = print,
) -> Bundle:
    """Writes the folder `out`, which must be new or empty, and `out`.zip; all of it or nothing.

    `about` tells where the weights come from; `say` is told what goes on. Raises ConfigError for a
    policy that cannot be exported.
    """
    wanted.validate()
    check_packages(wanted)
    _check(policy, out)
    sizes, archive = _sizes(config), out.with_name(f"{out.name}.zip")
    if wanted.sizes[0] < least_users(sizes):
        raise ConfigError(
            f"sizes begins with {wanted.sizes[0]}; must be at least {least_users(sizes)} for "
            f"{sizes['M']} batches (fewer users are padded)"
        )
    try:
        with disk.staged(out) as new:
            _write_programs(new, policy, wanted, sizes, say)
            say("trained ranges and test vectors")
            ranges, records = trained_ranges(config), _vector_instances(config, wanted.sizes[-1])
            _write_json(new / "vectors.json", _vectors(policy, records, wanted))
            document = _about(out.name, policy, config, about, wanted, sizes, ranges)
            _write_json(new / "bundle.json", document)
            _write_json(new / "schema.json", _schemas(sizes, wanted.sizes[-1]))
            (new / "README.md").write_text(card, encoding="utf-8")
            disk.seal(new)
            zip_bundle(new, archive)
    except BaseException:
        with suppress(OSError):  # its folder is a file, say: that is told already
            archive.unlink(missing_ok=True)
        raise
    return open_bundle(out)


def _write_programs(
    folder: Path,
    policy: Policy,
    wanted: ExportConfig,
    sizes: Mapping[str, int],
    say: Callable[[str], None],
) -> None:
    made = programs(policy)
    for entry in ENTRIES:
        say(f"{entry}: for jax")
        (folder / f"{entry}.jax").write_bytes(portable(entry, made[entry], sizes))
    if wanted.iree:
        compile_for_iree(folder, made, sizes, wanted, say)


def fewest_users(config: TrainConfig) -> int:
    """The smallest size that a bundle for this scenario may have."""
    return least_users(_sizes(config))


def _sizes(config: TrainConfig) -> dict[str, int]:
    """Numbers of batches and servers, which a bundle is for."""
    sample = jax.eval_shape(config.scenario.sample, jax.random.key(0))
    return {"M": sample.num_batches, "G": sample.num_servers}


def _check(policy: Policy, out: Path) -> None:
    disk.check_free(out)
    archive = out.with_name(f"{out.name}.zip")
    if archive.exists():
        raise ConfigError(f"out is {str(out)!r}, but {archive} exists; move it or choose another")
    if not isinstance(policy.env, EnvConfig):
        raise ConfigError(
            f"the policy's environment is {type(policy.env).__name__}; must be snapshot: a bundle "
            "decides snapshots"
        )
    if policy.env.solver != NATIVE:
        raise ConfigError(
            f"the policy's splits.solver is {policy.env.solver.name}; must be native and without "
            "constraints or terms: exported programs decide with that one (and cvxpylayers calls "
            "back into Python, which no export can hold)"
        )


def trained_ranges(config: TrainConfig) -> dict[str, list[float | None]]:
    """The numbers that training met, by the names of `spans`, widened a little; None: infinity."""
    instances = _sampled(config, 1, SAMPLED)
    mask = instances.mask
    found = {"users": mask.sum(axis=0)}
    demand = np.where(mask, instances.demand, 0).sum(axis=0)
    found["load"] = demand / np.maximum(instances.capacity.sum(axis=0), 1e-9)
    for port in ports.RANGED:
        x = getattr(instances, port.name)
        real = np.moveaxis(x, -1, 1)[mask] if port.axes.startswith("N") else x
        found[port.name] = real
    return {name: _widened(float(np.min(x)), float(np.max(x))) for name, x in found.items()}


def _sampled(config: TrainConfig, seed: int, count: int) -> Instance:
    """Instances of the scenario, the batch last, in NumPy."""
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.device_get(jax.jit(partial(sample_many, config.scenario))(keys))


def _widened(low: float, high: float) -> list[float | None]:
    if not np.isfinite(high):  # JSON has no infinity
        return [low if np.isfinite(low) else None, None]
    # Rounding to float32 moves even what never varies.
    wide = MARGIN * (high - low) + 1e-6 * max(abs(low), abs(high))
    return [max(low - wide, 0.0) if low >= 0 else low - wide, high + wide]


def _vector_instances(config: TrainConfig, limit: int) -> list[InstanceRecord]:
    """Instances of the scenario that fit the bundle."""
    count = 4 * VECTORS
    instances = _sampled(config, 2, count)
    records = [to_record(taken(instances, i), f"vector-{i}") for i in range(count)]
    fitting = [record for record in records if len(record.alpha) <= limit]
    if not fitting:
        raise ConfigError(f"sizes ends at {limit}; the scenario has no instances with so few users")
    return fitting[:VECTORS]


def _vectors(
    policy: Policy, records: Sequence[InstanceRecord], wanted: ExportConfig
) -> list[dict[str, Any]]:
    """What every entry answers to the instances, computed here without exporting anything."""
    users = wanted.sizes[-1]
    seeds = list(range(len(records)))
    answers = {}
    for entry, program in programs(policy).items():
        arrays = ports.arrays_of(entry, records, users, seeds, wanted.samples)
        answers[entry] = jax.device_get(jax.jit(program)(*map(jnp.asarray, arrays)))
    return [
        {
            "instance": instance_to_json(record),
            "seed": seeds[i],
            "answers": {
                entry: {
                    name: x.tolist()
                    for name, x in ports.unpadded(outputs, i, len(record.alpha)).items()
                }
                for entry, outputs in answers.items()
            },
        }
        for i, record in enumerate(records)
    ]


def _about(
    name: str,
    policy: Policy,
    config: TrainConfig,
    about: Mapping[str, Any],
    wanted: ExportConfig,
    sizes: Mapping[str, int],
    ranges: Mapping[str, Any],
) -> dict[str, Any]:
    packages = ("offload-jax", "jax", "jaxlib", "numpy")
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "policy": {**about, "order": config.env.order, "temperature": float(policy.temperature)},
        "sizes": {
            "users": list(wanted.sizes),
            "batches": sizes["M"],
            "servers": sizes["G"],
            "samples": wanted.samples,
        },
        "inputs": [port.to_json() for port in ports.INPUTS],
        "inputs_of_best": [ports.DRAWS.to_json()],
        "outputs": [port.to_json() for port in ports.OUTPUTS],
        "normalisation": "none: programs take the units above and make them dimensionless inside",
        "scenario": asdict(config.scenario),
        "ranges": dict(ranges),
        "versions": {package: version(package) for package in packages},
        "jax": {
            "exported_with": jax.__version__,
            "platforms": list(PLATFORMS),
            "calling_convention": export.maximum_supported_calling_convention_version,
            "loads_with": "this version of jax and those of the 6 months after it",
        },
    }
    if wanted.iree:
        document["iree"] = {
            "compiled_with": version("iree-base-compiler"),
            "batches": IREE_BATCHES,
            "machine": platform.machine(),
            "cpu": wanted.processor,
        }
    return document


def _schemas(sizes: Mapping[str, int], users: int) -> dict[str, Any]:
    fixed = {"M": sizes["M"], "G": sizes["G"], "N": (1, users)}
    request = json_schema(INSTANCE_HEADER, INSTANCE, fixed)
    plan = json_schema(PLAN_HEADER, PLAN, fixed)
    numbers = {"type": "array", "items": {"type": "number"}}
    answer = {
        "type": "object",
        "properties": {
            **{key: {"const": value} for key, value in ANSWER_HEADER.items()},
            "plan": plan,
            "latency": {**numbers, "description": "of each user, s, with the whole splits"},
            "accuracy": {**numbers, "description": "of each user, with the whole splits"},
            "price": {**numbers, "description": "of each server, s per GPU-second"},
            "source": {"enum": ["policy", "fallback", "deny"]},
            "notes": {"type": "array", "items": {"type": "string"}},
        },
        "required": [*ANSWER_HEADER, "plan", "latency", "accuracy", "price", "source", "notes"],
        "additionalProperties": False,
    }
    return {
        "request": {"$schema": DIALECT, "title": "Instance", **request},
        "answer": {"$schema": DIALECT, "title": "Answer", **answer},
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
