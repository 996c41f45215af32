"""Trains a policy: python train.py --help."""

import sys

from offload_jax.cli import train

sys.exit(train())
