"""Feast's online read of the same 10,000 rows from the same Redis, beside the mirror and redis-py, in one run.

    python benchmarks/peers/feast_join.py [--items 30000] [--candidates 10000] [--requests 1000] [--feast-requests 200]

Two readings of the rows: one ``Bytes`` feature (the row as it is, the best case for Feast) and its numbers as three
features. Feast takes over half a second a request, so it is asked --feast-requests times, not 1,000. About 8 minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aif_stream.bench import join
from aif_stream.embedded.process import end_with_owner

HERE = Path(__file__).resolve().parent


async def feast(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs feast_reader.py under the peers' Python; its ways as ``join`` names them."""
    where = urlsplit(url)
    with tempfile.TemporaryDirectory(prefix="aif-feast-") as directory:
        child = await asyncio.create_subprocess_exec(
            options.peers_python,
            HERE / "feast_reader.py",
            directory,
            f"{where.hostname}:{where.port}",
            *(str(n) for n in (options.items, options.candidates, options.feast_requests, join.LAYOUT.dtype.itemsize)),
            stdout=asyncio.subprocess.PIPE,
            preexec_fn=end_with_owner(),
        )
        output, _ = await child.communicate()
    if child.returncode:
        sys.exit(f"feast_reader.py ended with {child.returncode}")
    return dict(json.loads(output.decode().splitlines()[-1]))


def main() -> None:
    parser = join.parser()
    parser.add_argument("--feast-requests", type=int, default=200)
    parser.set_defaults(beside=feast, items=30_000)
    options = parser.parse_args()
    options.peers_python = subprocess.check_output([HERE.parent / "setup-peers"], text=True).strip()
    print(json.dumps(join.result_of(options), indent=None if options.json else 2))


if __name__ == "__main__":
    main()
