"""An object store in a process of its own: says its URL, has one bucket, ``shop``, and ends when its input does."""

from __future__ import annotations

import logging
import os
import sys


def main() -> None:
    """Start it and serve."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket="shop")
    print(url, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)
