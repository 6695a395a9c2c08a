"""Apache Kafka's jars: fetched once with Maven as ``deploy/kafka/pom.xml`` pins them, every checksum verified."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aif_stream.embedded.process import run_tool
from aif_stream.errors import EmbeddedError

JAVA_AT_LEAST = 17  # Kafka 4 brokers do not run on less
CHECKSUMS = "checksums.sha256"  # beside the pom, in the format of sha256sum
# In a checkout; a wheel carries the same folder as aif_stream/kafka_pom.
_POMS = (
    Path(__file__).parents[2] / "deploy" / "kafka" / "pom.xml",
    Path(__file__).parents[1] / "kafka_pom" / "pom.xml",
)
_CACHE = Path(".cache") / "aif_stream" / "kafka"
_FETCH_DEADLINE_S = 600.0  # 43 MB; 50 s with an empty Maven repository and a near mirror
_JAVA_DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class KafkaJars:
    """A folder that holds everything on the broker's class path."""

    directory: Path

    @property
    def classpath(self) -> str:
        return str(self.directory / "*")

    @classmethod
    def from_home(cls, home: Path) -> Self:
        """The jars of an unpacked Apache Kafka (``home/libs``). Raises EmbeddedError when there is no broker in it."""
        libs = home.resolve() / "libs"
        if not any(libs.glob("kafka_2.*.jar")):
            raise EmbeddedError(f"{libs} holds no kafka_2.*.jar", mend="name the folder of an unpacked Apache Kafka")
        return cls(libs)

    @classmethod
    async def fetch(cls, *, pom: Path | None = None, cache: Path | None = None) -> Self:
        """The jars of ``pom`` from ``cache`` (default ``~/.cache/aif_stream/kafka``), by Maven when they are not there.

        The folder is named by Kafka's version and by the hash of pom and checksums, and appears whole or not at all,
        so any number of processes may fetch at once. Raises EmbeddedError when Maven fails or a checksum differs.
        """
        pom = await asyncio.to_thread((pom or next((each for each in _POMS if each.is_file()), _POMS[0])).resolve)
        pinned = await asyncio.to_thread(_read_pinned, pom)
        folder = (cache or Path.home() / _CACHE).resolve() / pinned.name
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder.parent) as name:
                fetched = Path(name) / "libs"
                await _copy_dependencies(pom, fetched)
                await asyncio.to_thread(_verify, fetched, pinned.checksums, f"fix {CHECKSUMS} only if the pom changed")
                await asyncio.to_thread(_publish, fetched, folder)
        await asyncio.to_thread(_verify, folder, pinned.checksums, f"remove {folder}, it is fetched again")
        return cls(folder)


async def missing_tools(*, maven: bool) -> str:
    """What this machine lacks to run a broker (and, with ``maven``, to fetch one); "" when nothing."""
    java = await java_version()
    if java is None:
        return f"no working `java` on PATH (Java {JAVA_AT_LEAST} or later is needed)"
    if java < JAVA_AT_LEAST:
        return f"`java` on PATH is version {java}, {JAVA_AT_LEAST} or later is needed"
    if maven and shutil.which("mvn") is None:
        return "no `mvn` (Maven) on PATH to fetch the broker's jars"
    return ""


async def java_version() -> int | None:
    """The major version of ``java`` on PATH, None when there is none that runs."""
    if shutil.which("java") is None:
        return None
    try:
        text = await run_tool(["java", "-version"], directory=Path.cwd(), deadline_s=_JAVA_DEADLINE_S, mend="")
    except EmbeddedError:
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', text)  # 17.0.15, and 1.8.0 for Java 8
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class _Pinned:
    name: str  # <Kafka's version>-<hash>
    checksums: dict[str, str]  # jar → SHA-256, hexadecimal


def _read_pinned(pom: Path) -> _Pinned:
    try:
        pom_bytes, lines = pom.read_bytes(), (pom.parent / CHECKSUMS).read_bytes()
    except OSError as error:
        raise EmbeddedError(
            f"no pinned Kafka: {error}", mend="name deploy/kafka/pom.xml of a checkout, or an unpacked Apache Kafka"
        ) from error
    version = re.search(rb"<kafka\.version>([\w.-]+)<", pom_bytes)
    if version is None:
        raise EmbeddedError(f"{pom} has no <kafka.version>", mend="compare it with deploy/kafka/pom.xml")
    checksums = {name.lstrip("*"): digest for digest, name in (line.split() for line in lines.decode().splitlines())}
    return _Pinned(f"{version[1].decode()}-{hashlib.sha256(pom_bytes + lines).hexdigest()[:12]}", checksums)


async def _copy_dependencies(pom: Path, target: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise EmbeddedError("no `mvn` on PATH to fetch Kafka", mend="install Maven, or unpack Apache Kafka yourself")
    command: list[str | Path] = [
        maven,
        "-B",
        "-q",
        "-f",
        pom,
        "dependency:copy-dependencies",
        f"-DoutputDirectory={target}",
    ]
    # Run beside the target: Maven must not write into the checkout.
    await run_tool(
        command, directory=target.parent, deadline_s=_FETCH_DEADLINE_S, mend="check Maven's access to its repository"
    )


def _verify(folder: Path, checksums: dict[str, str], mend: str) -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.jar")}
    wrong = sorted(name for name in found.keys() | checksums.keys() if found.get(name) != checksums.get(name))
    if wrong:
        names = ", ".join(f"{name} ({_fault(name, found, checksums)})" for name in wrong)
        raise EmbeddedError(f"the jars in {folder} are not those of {CHECKSUMS}: {names}", mend=mend)


def _fault(name: str, found: dict[str, str], checksums: dict[str, str]) -> str:
    if name not in found:
        return "missing"
    return "differs" if name in checksums else "not listed"


def _publish(fetched: Path, folder: Path) -> None:
    try:
        fetched.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker; its jars are verified next
            raise
