"""`export`: makes a bundle of a policy, to decide without training code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from offload_jax.commands.progress import warn
from offload_jax.export import bundle
from offload_jax.export.artifacts import ExportConfig
from offload_jax.export.card import about_run, card_of
from offload_jax.files.checks import ConfigError
from offload_jax.runs import policy_folder, run_folder
from offload_jax.runs.train import load_policy


@dataclass(frozen=True)
class Arguments:
    """Export a policy as a bundle: programs that decide without training code, for years."""

    out: Path
    """Folder to make; OUT.zip is written beside it."""
    run: Path | None = None
    """Run directory whose best policy is exported."""
    policy: str | None = None
    """Export this instead of a run: a shipped policy by its name, or a policy folder."""
    plugins: tuple[str, ...] = ()
    """Files or modules of your own code that the policy's settings may name."""
    sizes: tuple[int, ...] = ()
    """Numbers of users that requests are padded to; the last is the limit. Default: half of what
    the policy was trained for, and all of it."""
    samples: int = 16
    """Plans of the program that keeps the best of several."""
    iree: bool = True
    """Also compile for IREE, for processes without jax (--no-iree: jax alone)."""
    cpu: str = "x86-64-v3"
    """Oldest processor that IREE's programs run on, as LLVM names it; generic for any."""


def run(words: list[str], prog: str) -> int:
    """Writes the bundle that the words ask for."""
    parsed = tyro.cli(Arguments, args=words, prog=prog)
    if (parsed.run is None) == (parsed.policy is None):
        raise ConfigError("run and policy: give one of them, the policy to export")
    if parsed.policy is not None:
        folder = policy_folder.find(parsed.policy)
        policy, config = policy_folder.load(parsed.policy, parsed.plugins)
        about = json.loads((folder / "policy.json").read_bytes())["about"]
        card = (folder / "README.md").read_text(encoding="utf-8")
    else:
        assert parsed.run is not None
        config = run_folder.read_config(parsed.run, parsed.plugins)
        policy = load_policy(parsed.run, warn=warn, plugins=parsed.plugins)
        about = about_run(parsed.run, policy.source)
        card = card_of(parsed.run, parsed.out.name, config, about)
    least = bundle.fewest_users(config)
    most = max(config.scenario.max_users, least)
    wanted = ExportConfig(
        parsed.sizes or tuple(sorted({max((most + 1) // 2, least), most})),
        parsed.samples,
        parsed.iree,
        parsed.cpu,
    )
    made = bundle.write_bundle(parsed.out, policy, config, about, card, wanted)
    size = sum(file.stat().st_size for file in made.folder.iterdir()) / 1e6
    print(f"written: {parsed.out}/ ({size:.1f} MB) and {parsed.out}.zip; check it anywhere with")
    print(f"  offload-jax verify {parsed.out}")
    return 0
