"""The asynchronous shell. It knows when treadle was loaded (a source file that is younger may not be what is loaded),
and where it lies, so that its own frames can be told from the user's."""

from __future__ import annotations

import os
from time import time
from typing import Final

LOADED_AT: Final = time()
SHELL: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
PACKAGE: Final = os.path.dirname(os.path.dirname(SHELL)) + os.sep
