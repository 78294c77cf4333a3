"""A dask cluster in a process of its own, so that a test's process has none of its threads, children and descriptors.

    python dask_host.py WORKERS PORT [NAME=AMOUNT ...]

It says the scheduler's address, and ends when its input does. A line of input is answered by one of output: ``pids`` by
the process ids of the workers, ``stop`` when the scheduler is gone.
"""

from __future__ import annotations

import json
import os
import sys

from distributed import LocalCluster


def main() -> None:
    """Start the cluster and serve."""
    resources = {name: float(amount) for name, _, amount in (word.partition("=") for word in sys.argv[3:])}
    with LocalCluster(
        n_workers=int(sys.argv[1]), threads_per_worker=1, resources=resources or None,
        host="127.0.0.1", scheduler_port=int(sys.argv[2]), dashboard_address="127.0.0.1:0", silence_logs=50,
    ) as cluster:  # fmt: skip
        print(cluster.scheduler_address, flush=True)
        for line in sys.stdin:
            if line.strip() == "stop":
                break
            print(json.dumps([nanny.pid for nanny in cluster.workers.values()]), flush=True)
    print("stopped", flush=True)


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)
