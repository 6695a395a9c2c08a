"""``aif …`` in a process of its own, on the test's servers."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from aif_stream.settings import Settings, variables

SHARED = ("kafka_bootstrap", "redis_url", "topic_prefix", "models_dir", "index_buckets", "home", "serve_url")


async def aif(settings: Settings, *words: str, stdin: bytes = b"") -> tuple[int | None, bytes, str]:
    """Exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aif_stream", *words),
        env={**os.environ, **variables(settings, SHARED), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin)
    return process.returncode, out, err.decode()


async def aif_json(settings: Settings, *words: str) -> tuple[int | None, Any]:
    """``aif … --json``: exit code and what stdout says."""
    code, out, err = await aif(settings, *words, "--json")
    assert out, err
    return code, json.loads(out)
