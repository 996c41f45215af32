"""`python -m benchmarks.learners`: learning algorithms and their parts side by side on `edge`."""

import sys

from benchmarks.learners.side_by_side import main

sys.exit(main())
