"""Executors that run steps outside this process; each module needs treadle and the library it is named after.

Importing this package imports none of them: take the one you want, ``from treadle_adapters.process import
ProcessExecutor``. The modules use the public part of ``treadle`` only.
"""
