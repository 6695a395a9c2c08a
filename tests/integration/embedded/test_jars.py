"""The broker's jars are exactly the pinned ones, whoever fetches them and however often. Maven is a script here."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from aif_stream.embedded.jars import CHECKSUMS, KafkaJars
from aif_stream.errors import EmbeddedError

JARS = {"kafka_2.13-9.9.jar": b"broker", "log4j-core-1.jar": b"logging"}
MAVEN = """#!/bin/sh
for word in "$@"; do case "$word" in -DoutputDirectory=*) target="${word#*=}";; esac; done
echo run >> "$0.runs"
mkdir -p "$target" && cp "$0.jars/"* "$target/"
"""


class Checkout:
    """A pom with its checksums, a cache, and a `mvn` first on PATH that delivers the files in ``delivers``."""

    def __init__(self, root: Path) -> None:
        self.pom = root / "pom.xml"
        self.cache = root / "cache"
        self._maven = root / "bin" / "mvn"
        self.delivers = root / "bin" / "mvn.jars"
        self.delivers.mkdir(parents=True)
        self._maven.write_text(MAVEN)
        self._maven.chmod(0o755)
        self.pom.write_text("<project><properties><kafka.version>9.9</kafka.version></properties></project>")
        lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in JARS.items()]
        (root / CHECKSUMS).write_text("".join(lines))
        for name, data in JARS.items():
            (self.delivers / name).write_bytes(data)

    async def fetch(self) -> KafkaJars:
        return await KafkaJars.fetch(pom=self.pom, cache=self.cache)

    @property
    def maven_runs(self) -> int:
        runs = self._maven.with_name("mvn.runs")
        return len(runs.read_text().splitlines()) if runs.exists() else 0


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return Checkout(tmp_path)


async def test_jars_are_fetched_once_into_a_folder_named_by_version(checkout: Checkout) -> None:
    first, second = await checkout.fetch(), await checkout.fetch()
    assert first == second
    assert first.directory.name.startswith("9.9-")
    assert {path.name: path.read_bytes() for path in first.directory.iterdir()} == JARS
    assert checkout.maven_runs == 1
    assert list(checkout.cache.iterdir()) == [first.directory]


async def test_fetching_at_the_same_time_gives_everybody_the_same_whole_folder(checkout: Checkout) -> None:
    fetched = await asyncio.gather(*(checkout.fetch() for _ in range(4)))
    assert len(set(fetched)) == 1
    assert list(checkout.cache.iterdir()) == [fetched[0].directory]


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("log4j-core-1.jar", b"something else", "log4j-core-1.jar (differs)"),
        ("log4j-core-1.jar", None, "log4j-core-1.jar (missing)"),
        ("extra.jar", b"not pinned", "extra.jar (not listed)"),
    ],
)
async def test_a_jar_that_is_not_the_pinned_one_is_named_and_never_enters_the_cache(
    checkout: Checkout, name: str, data: bytes | None, fault: str
) -> None:
    if data is None:
        (checkout.delivers / name).unlink()
    else:
        (checkout.delivers / name).write_bytes(data)
    with pytest.raises(EmbeddedError) as caught:
        await checkout.fetch()
    assert fault in str(caught.value)
    assert list(checkout.cache.iterdir()) == []


async def test_a_cached_jar_that_was_changed_later_is_found(checkout: Checkout) -> None:
    jars = await checkout.fetch()
    (jars.directory / "log4j-core-1.jar").write_bytes(b"changed")
    with pytest.raises(EmbeddedError, match=r"log4j-core-1.jar \(differs\).*remove .* it is fetched again"):
        await checkout.fetch()


async def test_a_new_pin_gets_a_new_folder(checkout: Checkout) -> None:
    before = await checkout.fetch()
    checkout.pom.write_text(checkout.pom.read_text().replace("9.9", "9.10"))
    after = await checkout.fetch()
    assert (before.directory.name[:4], after.directory.name[:5]) == ("9.9-", "9.10-")


async def test_a_maven_that_fails_is_quoted(checkout: Checkout) -> None:
    (checkout.delivers.parent / "mvn").write_text("#!/bin/sh\necho 'Could not transfer artifact'; exit 1\n")
    with pytest.raises(EmbeddedError, match=r"(?s)ended with 1:\nCould not transfer artifact.*check Maven's access"):
        await checkout.fetch()


async def test_a_missing_pom_names_the_other_road(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"no pinned Kafka: .*unpacked Apache Kafka"):
        await KafkaJars.fetch(pom=tmp_path / "pom.xml", cache=tmp_path)


def test_an_unpacked_kafka_is_taken_as_it_is_and_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"holds no kafka_2\.\*\.jar"):
        KafkaJars.from_home(tmp_path)
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-4.1.0.jar").touch()
    assert KafkaJars.from_home(tmp_path).directory == tmp_path / "libs"
