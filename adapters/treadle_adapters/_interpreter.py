"""How this interpreter was started, as options for another one; knows nothing of processes.

Workers get none of the variables that tell Python how to run, so what those have said is said by options, too.
"""

from __future__ import annotations

import sys
from typing import Final

_ONLY_TALK: Final = ("importtime", "showrefcount", "presite")
"""What makes an interpreter say more, and changes nothing that a step can see."""


def options() -> list[str]:
    """Options that change what code means or how it runs: ``-O``, ``-W``, ``-X`` and what keeps Python to itself.

    >>> [option for option in options() if option.startswith("-X")][:1]
    ['-X']
    """
    flags = sys.flags
    counts = {
        "-B": sys.dont_write_bytecode, "-O": flags.optimize, "-b": flags.bytes_warning, "-I": flags.isolated,
        "-E": flags.ignore_environment, "-s": flags.no_user_site, "-S": flags.no_site,
    }  # fmt: skip
    found = [option for option, count in counts.items() for _ in range(count)]
    for name, value in _implementation().items():
        found += ["-X", name if value is True else f"{name}={value}"]
    for text in _warnings():
        found += ["-W", text]
    return found


def _implementation() -> dict[str, str | bool]:
    flags = sys.flags
    found: dict[str, str | bool] = {name: value for name, value in sys._xoptions.items() if name not in _ONLY_TALK}
    found["utf8"] = str(flags.utf8_mode)
    if flags.dev_mode:
        found["dev"] = True
    if flags.warn_default_encoding:
        found["warn_default_encoding"] = True
    if flags.int_max_str_digits >= 0:  # else it is the default
        found["int_max_str_digits"] = str(flags.int_max_str_digits)
    return found


def _warnings() -> list[str]:
    """Without those that come with ``-X dev``, which are the first ones, and with ``-b``, the last ones.

    And without those of modules that have to be imported to know them: who starts workers runs no code of the user's.
    """
    found = list(sys.warnoptions)
    if sys.flags.dev_mode and found[:1] == ["default"]:
        del found[0]
    if sys.flags.bytes_warning and found and found[-1].endswith("::BytesWarning"):
        del found[-1]
    return [text for text in found if "." not in f"{text}:::".split(":")[2]]
