"""Throw-away certificates for tests of TLS."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest


async def openssl(directory: Path, *arguments: str) -> None:
    """Run openssl in ``directory``; skips where it is not installed."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificates")
    process = await asyncio.create_subprocess_exec(
        "openssl", *arguments, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


async def certificates(directory: Path) -> None:
    """``ca.pem``, ``other-ca.pem``; signed by the first ``server`` (127.0.0.1), ``elsewhere``, ``mutual``."""
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    usage = ["-addext", "keyUsage=critical,keyCertSign"]
    for name in ("ca", "other-ca"):
        await openssl(directory, *new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", *usage)
    for name, san in (("server", "IP:127.0.0.1"), ("elsewhere", "DNS:kafka.example"), ("mutual", "DNS:mutual")):
        by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
        out = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"]
        await openssl(directory, *new, *out, *by, "-addext", f"subjectAltName={san}")
        both = (directory / f"{name}.key").read_bytes() + (directory / f"{name}.pem").read_bytes()
        (directory / f"{name}-both.pem").write_bytes(both)
