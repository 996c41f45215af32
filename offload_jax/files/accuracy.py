"""The accuracy curve (5) in NumPy, for who decides or proves without JAX.

`problem.equations` has the same in JAX. All arguments broadcast.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def logistic(x: Any) -> Any:
    """1 / (1 + exp(-x)), which cannot overflow this way."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def accuracy_loss(steps: Any, split: Any, local: Any, floor: Any, slope: Any, centre: Any) -> Any:
    """P - PAI: what (5) is below the local accuracy if the last `split` steps run locally."""
    rise = np.expm1(slope * (split - steps)) * logistic(slope * (centre - split))
    return -(local - floor) * rise


def amplitude(alpha: Any, steps: Any, local: Any, floor: Any, slope: Any, centre: Any) -> Any:
    """c = alpha (P - f) / sig(a (T - b)), s: the factor of sig(a (n - b)) in U."""
    return alpha * (local - floor) / logistic(slope * (steps - centre))
