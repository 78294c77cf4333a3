"""What every test relies on; it knows nothing of the engine."""

from __future__ import annotations

import os

from hypothesis import settings

# No deadline: machines are shared and noisy. Under CI the examples are the same each time, so that a red build can be
# repeated; elsewhere each run looks at new ones.
settings.register_profile("treadle", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("treadle")
