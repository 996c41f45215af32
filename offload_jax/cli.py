"""The command line: which command the words mean, and how errors end."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

from offload_jax.files.checks import UserError

# Command: its module in commands/, which is only imported when it is called, and what it does.
COMMANDS = {
    "train": ("train", "Train a policy, or go on with a stopped run."),
    "eval": ("evaluate", "Compare a trained policy with every baseline on the same instances."),
    "testset": ("testset", "Build a frozen test set, or look for better plans for one."),
    "advise": (
        "advise",
        "Say what limits a plan, what more of it is worth, and who comes next.",
    ),
    "sync": ("sync", "Upload a run to Weights & Biases: what is not there yet."),
    "sweep": ("sweep", "Train with the settings of a sweep file, several at a time."),
    "pack": ("pack", "Put a run's policy into files of its own."),
    "export": ("export", "Export a policy as a bundle that decides without training code."),
    "verify": ("verify", "Replay a bundle's test vectors through every runtime present."),
    "serve": ("serve", "Serve a bundle's decisions over HTTP."),
    "info": ("info", "Print versions, devices and configurations, or the state of a run."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `offload-jax COMMAND ...`; returns its status (0 good, 1 refused, 130 interrupted).

    Options that do not exist end in SystemExit(2), `--help` in SystemExit(0).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        return _run(words[0], words[1:], f"offload-jax {words[0]}")
    if words in ([], ["-h"], ["--help"]):
        print(_usage())
        return 0
    if words == ["--version"]:
        print(f"offload-jax {version('offload-jax')}")
        return 0
    near = difflib.get_close_matches(words[0], COMMANDS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    print(f"error: no command {words[0]!r}{hint}\n\n{_usage()}", file=sys.stderr)
    return 2


def train(words: Sequence[str] | None = None) -> int:
    """`python train.py ...`."""
    return _run("train", list(sys.argv[1:] if words is None else words), "train.py")


def evaluate(words: Sequence[str] | None = None) -> int:
    """`python eval.py ...`."""
    return _run("eval", list(sys.argv[1:] if words is None else words), "eval.py")


def _usage() -> str:
    lines = [f"  {name:8} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        ["usage: offload-jax COMMAND [options]; COMMAND --help lists them; --version", "", *lines]
    )


def _run(name: str, words: list[str], prog: str) -> int:
    """Errors that a user can mend end in one clear message, not a traceback."""
    try:
        command = importlib.import_module(f"offload_jax.commands.{COMMANDS[name][0]}")
        return int(command.run(words, prog))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not isinstance(error, UserError | OSError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
