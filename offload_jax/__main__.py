"""`python -m offload_jax`: the same as the console script `offload-jax`."""

import sys

from offload_jax.cli import main

sys.exit(main())
