"""Programs as files: portable ones for `jax.export`, and compiled ones for IREE.

`jax.export` lowers a program once for cpu, cuda and tpu, with any batch and number of users; IREE
compiles the same for one machine and fixed shapes.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax import export

from offload_jax.deploy import ENTRIES
from offload_jax.deploy.bundle import TOGETHER, module_name
from offload_jax.deploy.runtimes import installed
from offload_jax.export.programs import least_users, lowered
from offload_jax.files.checks import ConfigError

PLATFORMS = ("cpu", "cuda", "tpu")
IREE_BATCHES = {"greedy": TOGETHER, "best": (1,), "fallback": (1,)}  # each takes long to compile


@dataclass(frozen=True)
class ExportConfig:
    """What a bundle is made for."""

    sizes: tuple[int, ...]  # numbers of users that requests are padded to
    samples: int = 16  # of the program that keeps the best of several plans
    iree: bool = True  # also compile for IREE
    cpu: str = "x86-64-v3"  # oldest processor the IREE programs run on; "generic" for any

    def validate(self) -> None:
        """Raises ConfigError naming the field and what is allowed."""
        if not self.sizes or min(self.sizes) < 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise ConfigError(f"sizes is {self.sizes}; must be rising numbers of users >= 1")
        if self.samples < 2:
            raise ConfigError(f"samples is {self.samples}; must be at least 2")

    @property
    def processor(self) -> str:
        """`cpu`, as levels of x86-64 name nothing on other machines."""
        return self.cpu if platform.machine() == "x86_64" else "generic"


def check_packages(wanted: ExportConfig) -> None:
    """Raises ConfigError where a package is missing, before anything is lowered."""
    install = "pip install 'offload-jax[export]'"
    if not installed("flatbuffers"):
        raise ConfigError(f"export needs flatbuffers, which is missing; {install}")
    if wanted.iree and not installed("iree.compiler"):
        raise ConfigError(
            f"iree is true, but IREE's compiler is missing; {install}, or --no-iree for a bundle "
            "that only jax can run"
        )


def portable(entry: str, program: Callable[..., Any], sizes: Mapping[str, int]) -> bytes:
    """A program for every platform, batch and number of users, as `jax.export` serialises it."""
    names = ["b", "n", "p"] if entry == "best" else ["b", "n"]
    least = {"n": least_users(sizes)}
    limits = [f"{name} >= {least.get(name, 1)}" for name in names]
    symbols = export.symbolic_shape(", ".join(names), constraints=limits)
    symbolic = dict(zip(("batch", "N", "P"), symbols, strict=False)) | dict(sizes)
    return bytes(lowered(entry, program, symbolic, PLATFORMS).serialize())


def compile_for_iree(
    folder: Path,
    made: Mapping[str, Callable[..., Any]],
    sizes: Mapping[str, int],
    wanted: ExportConfig,
    say: Callable[[str], None],
) -> None:
    """Writes a module for each entry, number of instances and number of users into the folder."""
    pool = ThreadPoolExecutor(os.cpu_count())  # IREE's compiler is a process of its own
    try:
        work = []
        for users in wanted.sizes:
            for entry in ENTRIES:
                for batch in IREE_BATCHES[entry]:
                    fixed = {"batch": batch, "N": users, "P": wanted.samples, **sizes}
                    module = lowered(entry, made[entry], fixed, ("cpu",)).mlir_module_serialized
                    path = folder / module_name(entry, batch, users)
                    work.append(pool.submit(_compile, path, module, wanted.processor, say))
        for one in work:
            one.result()
    finally:
        pool.shutdown(cancel_futures=True)  # what nobody waits for any more


def _compile(path: Path, module: bytes, processor: str, say: Callable[[str], None]) -> None:
    import iree.compiler as iree

    arguments = (
        f"--iree-llvmcpu-target-cpu={processor}",
        "--iree-llvmcpu-debug-symbols=false",  # a tenth of the size, a fifth of the time
    )
    compiled = iree.compile_str(
        module, target_backends=["llvm-cpu"], input_type="stablehlo", extra_args=arguments
    )
    path.write_bytes(compiled)
    say(f"{path.name} compiled")
