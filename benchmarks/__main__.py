"""``python -m benchmarks [S1 S5 ...]`` measures and prints one table; ``--check`` ends with 1 if a goal is missed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import msgspec

from benchmarks.harness import Bench, Row, Settings, environment, table
from benchmarks.s01_fan_out import fan_out
from benchmarks.s02_chain import relaxed_chain, strict_chain
from benchmarks.s04_sleep import sleeping
from benchmarks.s05_stall import stalls
from benchmarks.s06_memory import memory
from benchmarks.s07_hits import hits
from benchmarks.s08_threads import thread_steps
from benchmarks.s09_isolated import isolated_steps
from benchmarks.s10_arrays import arrays
from benchmarks.s11_start import start
from benchmarks.s14_static import static_pipelines
from benchmarks.s15_containers import containers

BENCHES: dict[str, Bench] = {
    "S1": fan_out,
    "S2": strict_chain,
    "S3": relaxed_chain,
    "S4": sleeping,
    "S5": stalls,
    "S6": memory,
    "S7": hits,
    "S8": thread_steps,
    "S9": isolated_steps,
    "S10": arrays,
    "S11": start,
    "S14": static_pipelines,
    "S15": containers,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print it."""
    asked = _parser().parse_args(arguments)
    settings = Settings(rounds=asked.rounds, scale=asked.scale, is_long=asked.long)
    rows: list[Row] = []
    for name in asked.names or BENCHES:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        rows += BENCHES[name](settings)
    about = environment(settings)
    if asked.json:
        found = [{**msgspec.to_builtins(row), "median": row.median, "mark": row.mark} for row in rows]
        print(msgspec.json.encode({"environment": about, "rows": found}).decode())
    else:
        print("  ".join(f"{key} {value}" for key, value in about.items()))
        print(table(rows))
    return 1 if asked.check and any(row.mark == "FAIL" for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = ", ".join(BENCHES)
    parser.add_argument(
        "names", nargs="*", type=str.upper, choices=[[], *BENCHES], metavar="NAME", help=f"some of {known} (all)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="samples of each row (5)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of steps (1)")
    parser.add_argument("--long", action="store_true", help="a soak of a million steps")
    parser.add_argument("--json", action="store_true", help="print JSON with every sample")
    parser.add_argument("--check", action="store_true", help="end with 1 if a goal is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
