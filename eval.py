"""Compares a trained policy with every baseline: python eval.py --help."""

import sys

from offload_jax.cli import evaluate

sys.exit(evaluate())
