"""Decisions from an exported bundle; needs numpy and one runtime (jax or iree), no training code.

from offload_jax import deploy
decider = deploy.load("bundle")
answer = decider.decide(request)  # an instance as JSON: answer.plan, .latency, .accuracy
"""

from __future__ import annotations

from offload_jax.deploy.bundle import ENTRIES, Bundle, open_bundle
from offload_jax.deploy.decide import Answer, Ask, Decider, load
from offload_jax.deploy.runtimes import RUNTIMES, open_runtime, present
from offload_jax.files.checks import BundleError

__all__ = [
    "ENTRIES",
    "RUNTIMES",
    "Answer",
    "Ask",
    "Bundle",
    "BundleError",
    "Decider",
    "load",
    "open_bundle",
    "open_runtime",
    "present",
]
