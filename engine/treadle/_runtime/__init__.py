"""The asynchronous shell. It knows when treadle was loaded: a source file that is younger may not be what is loaded."""

from __future__ import annotations

from time import time
from typing import Final

LOADED_AT: Final = time()
