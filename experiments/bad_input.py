"""Bad input, by every door: what `aif publish` says, what HTTP says, and what a foreign producer's record comes to.

    python experiments/bad_input.py [--running] [--out experiments/results/bad_input.json]

Starts a stack of its own (``aif up``), or uses the one that the settings lead to (``--running``: AIF_… variables or
run.toml). After every bad record a good one follows in the same partition, and has to be ranked: the stream goes on.
Prints the table of docs/operations.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from aif_stream.bus.connection import kafka_kwargs
from aif_stream.bus.events import event_headers
from aif_stream.bus.topics import DEAD_LETTERS, ITEM_UPDATES, topic_name
from aif_stream.bus.versions import read_versions
from aif_stream.clock import now_ms
from aif_stream.domain.events import EventType
from aif_stream.domain.ids import key_of
from aif_stream.domain.order import Order
from aif_stream.domain.row import empty_rows
from aif_stream.index.connection import open_redis
from aif_stream.index.item_codec import ItemWrite
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import load as load_artefact
from aif_stream.settings import Settings, load

AIF = [sys.executable, "-m", "aif_stream"]
WITHIN_S = 30.0
RUN = uuid.uuid4().hex[:6]  # ids of this run, so that a running stack can be used again


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of bad input. ``line`` goes to publish and HTTP (None: neither has a way to say it); ``key``, ``value``
    and ``headers`` are what a foreign producer puts on the topic (``headers`` None: those of a right event)."""

    name: str
    mend: str
    line: bytes | None = None
    key: bytes = b"bad"
    value: bytes | None = None
    headers: list[tuple[str, bytes]] | None = None

    @property
    def record(self) -> bytes | None:
        return self.value if self.value is not None else self.line


def cases() -> list[Case]:
    """Those of issue 3, in its order, and some that a foreign producer alone can bring about."""
    item = f"bad-{RUN}"
    key = item.encode()

    def line(**fields: Any) -> bytes:
        return orjson.dumps({"item_id": item, "category": "tea", **fields})

    vector = b'{"item_id": "%s", "category": "tea", "content_vector": [%s, 0.5]}'
    future = now_ms() + 3_600_000
    good = line()
    return [
        Case("malformed JSON", "send the whole object", good[:-9], key),
        Case("wrong type", "the named field, as topics/schemas say", line(category=["tea"]), key),
        Case("wrong type of an attribute", "a string, a number or strings", line(attributes={"price": True}), key),
        Case("NaN", "null, or leave the vector out", vector % (key, b"NaN"), key),
        Case("infinite number", "a number that 32 bits can hold", vector % (key, b"1e999"), key),
        Case("number beyond float32", "a number that 32 bits can hold", vector % (key, b"1e300"), key),
        Case("wrong vector width", "publish the vector of the model's width", line(content_vector=[0.5] * 3), key),
        Case("10 MB record", "1 MiB at most (max.message.bytes)", line(text="x" * 10_000_000), key),
        Case("10 MB record, compressed", "1 MiB at most", None, key, line(text="x" * 10_000_000)),
        Case("unknown event type", "ce_type as in topics/", None, key, good, _headers(kind="aif.item.renamed")),
        Case("future event time", "set the clock, send again", line(event_time_ms=future), key, good, _headers(future)),
        Case("negative id", "ids are strings or integers >= 0", line(item_id=-1), b"-1"),
        Case("id collision", "give one of the two another id", None, f"collides-{RUN}".encode(), b""),
        Case("missing headers", "CloudEvents headers, as in topics/", None, key, good, []),
        Case("invalid UTF-8", "UTF-8", good.replace(b"tea", b"t\xff"), key),
        Case("key is not the id", "the id as the record's key", None, b"another", good),
        Case("removal without a key", "the id as the record's key", None, b"", None, _headers(kind="aif.item.removed")),
    ]


def _headers(time_ms: int | None = None, kind: str = EventType.ITEM_UPSERTED) -> list[tuple[str, bytes]]:
    made = event_headers(EventType.ITEM_UPSERTED, str(uuid.uuid4()), "foreign", time_ms or now_ms())
    return [(name, kind.encode() if name == "ce_type" else value) for name, value in made]


@click.command()
@click.option("--running", is_flag=True, help="use the stack that the settings lead to")
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/bad_input.json"))
def main(running: bool, out: Path) -> None:
    with contextlib.nullcontext(load()[0]) if running else own_stack() as settings:
        found = asyncio.run(run(settings))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
    print(table(found))
    if not all(row["stream_goes_on"] for row in found):
        sys.exit(3)


@contextlib.contextmanager
def own_stack() -> Iterator[Settings]:
    """``aif up`` with a small catalogue."""
    with tempfile.TemporaryDirectory(prefix="aif-bad-input-") as home:
        words = [*AIF, "up", "--items", "300", "--users", "30", "--port", "0"]
        environ = {**os.environ, "AIF_HOME": home, "OMP_NUM_THREADS": "1"}
        up = subprocess.Popen(words, stdout=subprocess.PIPE, env=environ)
        try:
            assert up.stdout is not None
            assert up.stdout.readline().startswith(b"ready ")
            yield load(environ=environ)[0]
        finally:
            up.terminate()
            up.wait(60)


@dataclass(slots=True)
class Doors:
    """Open ways in, and the dead letters on their way out."""

    settings: Settings
    http: aiohttp.ClientSession
    producer: AIOKafkaProducer
    compressing: AIOKafkaProducer
    letters: AIOKafkaConsumer
    good: int = 0


async def run(settings: Settings) -> list[dict[str, Any]]:
    async with open_doors(settings) as doors:
        await prepare_collision(settings)
        found = []
        for case in cases():
            found.append(await try_case(doors, case))
            print(found[-1], file=sys.stderr)
        return found


@contextlib.asynccontextmanager
async def open_doors(settings: Settings) -> AsyncIterator[Doors]:
    kwargs = kafka_kwargs(settings)
    # A careless producer: no limit of its own, no checks.
    producer = AIOKafkaProducer(**kwargs, max_request_size=32 * 1024 * 1024)
    compressing = AIOKafkaProducer(**kwargs, max_request_size=32 * 1024 * 1024, compression_type="gzip")
    letters = AIOKafkaConsumer(**kwargs, auto_offset_reset="earliest")
    async with aiohttp.ClientSession() as http, producer, compressing, letters:
        partition = TopicPartition(topic_name(settings, DEAD_LETTERS), 0)
        letters.assign([partition])
        await letters.seek_to_end(partition)
        await letters.position(partition)
        yield Doors(settings, http, producer, compressing, letters)


async def prepare_collision(settings: Settings) -> None:
    """Two ids with one hash of 62 bits cannot be found by searching (2**31 tries for a pair of one's own choice, 2**62
    for a given id), so the store is told by hand that the key of our id belongs to another one."""
    text = f"collides-{RUN}"
    book = await read_versions(settings)
    async with open_redis(settings) as redis:
        store = N2OStore(redis, Buckets(settings.index_buckets))
        rows = {}
        for record in book.live():
            model = await asyncio.to_thread(load_artefact, Path(record.artefact))
            rows[record.version] = empty_rows(model.layout, 1)
            rows[record.version]["event_time_ms"] = 1_000
        write = ItemWrite(key_of(text), "the other id", Order(1_000, 0), b'{"item_id":"the other id","category":"c"}')
        await store.write_live([write], rows)


async def try_case(doors: Doors, case: Case) -> dict[str, Any]:
    if case.name == "id collision":
        case = dataclasses.replace(case, value=orjson.dumps({"item_id": case.key.decode(), "category": "tea"}))
    found: dict[str, Any] = {"case": case.name, "mend": case.mend}
    found["publish"] = await by_publish(doors.settings, case)
    found["http"] = await by_http(doors, case)
    invalid = await invalid_rows(doors)
    found["topic"], partition = await by_topic(doors, case)
    if found["topic"] == "no dead letter" and await until(lambda: more_invalid(doors, invalid)):
        found["topic"] = "features stored, its row marked invalid: `aif_rows_invalid_total`, not ranked"
    began = time.monotonic()
    found["stream_goes_on"] = await good_record(doors, partition)
    found["good_record_ranked_after_ms"] = round((time.monotonic() - began) * 1000)
    return found


async def by_publish(settings: Settings, case: Case) -> str | None:
    if case.line is None:
        return None
    names = ("kafka_bootstrap", "topic_prefix", "home")
    environ = {**os.environ, **{f"AIF_{name.upper()}": str(getattr(settings, name)) for name in names}}
    process = await asyncio.create_subprocess_exec(
        *(*AIF, "publish", "items", "-", "--json"),
        env=environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(case.line + b"\n")
    summary = json.loads(out)
    return summary["rejects"][0]["problem"] if summary["rejects"] else "accepted"


async def by_http(doors: Doors, case: Case) -> str | None:
    if case.line is None:
        return None
    url = f"{doors.settings.serve_url}/v1/events/items"
    async with doors.http.post(url, data=case.line, headers={"content-type": "application/json"}) as reply:
        answer = await reply.json(content_type=None)
    return f"{reply.status} {answer.get('detail') or 'accepted'}"


async def by_topic(doors: Doors, case: Case) -> tuple[str, int]:
    """Put the record on the topic as it is; what became of it, and the partition."""
    topic = topic_name(doors.settings, ITEM_UPDATES)
    headers = case.headers if case.headers is not None else _headers()
    try:
        producer = doors.compressing if "compressed" in case.name else doors.producer
        sent = await producer.send_and_wait(topic, case.record, key=case.key, headers=headers)
    except KafkaError as error:
        return f"refused by the broker: {type(error).__name__}", 0
    async for letter in until_quiet(doors.letters):
        found = {name: value.decode() for name, value in letter.headers if name.startswith("aif_")}
        if (found["aif_partition"], found["aif_offset"]) == (str(sent.partition), str(sent.offset)):
            return f"`{found['aif_reason']}` {found['aif_problem']}", sent.partition
    return "no dead letter", sent.partition


async def until_quiet(letters: AIOKafkaConsumer) -> AsyncIterator[Any]:
    """Letters, until none has come for three seconds: a worker needs milliseconds."""
    while found := await letters.getmany(timeout_ms=3000):
        for some in found.values():
            for letter in some:
                yield letter


async def good_record(doors: Doors, partition: int) -> bool:
    """One more item in the same partition; true when it is ranked."""
    doors.good += 1
    item = f"good-{RUN}-{doors.good}"
    value = orjson.dumps({"item_id": item, "category": "tea"})
    topic = topic_name(doors.settings, ITEM_UPDATES)
    await doors.producer.send_and_wait(topic, value, key=item.encode(), headers=_headers(), partition=partition)
    return await until(lambda: ranked(doors, item))


async def ranked(doors: Doors, item: str) -> bool:
    url = f"{doors.settings.serve_url}/v1/rank"
    async with doors.http.post(url, json={"user_id": "1", "candidates": [item]}) as reply:
        answer = await reply.json()
    return bool(reply.status == 200 and answer["coverage"]["scored"])


async def invalid_rows(doors: Doors) -> float:
    url = f"http://127.0.0.1:{doors.settings.metrics_port}/metrics"
    async with doors.http.get(url) as reply:
        lines = (await reply.text()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("aif_rows_invalid_total"))


async def more_invalid(doors: Doors, than: float) -> bool:
    return await invalid_rows(doors) > than


async def until(condition: Any) -> bool:
    end_s = time.monotonic() + WITHIN_S
    while time.monotonic() < end_s:
        if await condition():
            return True
        await asyncio.sleep(0.02)
    return False


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| input | `aif publish` | HTTP | on the topic | mend |", "|---|---|---|---|---|"]
    for row in found:
        cells = [row["case"], row["publish"], row["http"], row["topic"], row["mend"]]
        lines.append(
            "| " + " | ".join(str(cell or "–").replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
