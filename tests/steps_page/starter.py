"""Starts scripts quickly for the tests: a process that has treadle imported and nothing opened forks one for each.

A line on standard input names the script, the home and the file for what it prints; the answer is the exit code.
"""

from __future__ import annotations

import asyncio.runners  # noqa: F401  # scripts need it, and treadle imports it late
import importlib
import json
import os
import pkgutil
import runpy
import sys
import traceback

import treadle


def perform(order: dict[str, str]) -> int:
    """The script, as ``python script.py`` would run it."""
    with open(order["output"], "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.stdout = sys.stderr = output
        os.environ["TREADLE_HOME"] = order["home"]
        os.chdir(os.path.dirname(order["script"]))
        sys.path.insert(0, os.path.dirname(order["script"]))
        sys.argv = [order["script"]]
        try:
            runpy.run_path(order["script"], run_name="__main__")
        except BaseException:
            traceback.print_exc()
            return 1
    return 0


def main() -> None:
    """Serve until the tests are over."""
    for module in pkgutil.walk_packages(treadle.__path__, "treadle."):
        if "testing" not in module.name:
            importlib.import_module(module.name)  # so that no script has to wait for it
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = perform(json.loads(line))
            os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
