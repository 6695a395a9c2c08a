"""Decompression is bounded before memory is allocated, whatever the bytes claim."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import cramjam
import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch, LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from aif_stream.bus import decompression
from aif_stream.bus.decompression import BatchTooLarge, bound, opened
from tests import bombs
from tests.bombs import MIB

DEFAULT_BYTES = 32 * MIB
# What stands for hundreds of MB, as far as a codec can: LZ4 makes 255 of one byte, snappy 21.
SIZES = {"zstd": 600, "zstd frames": 600, "gzip": 200, "gzip members": 200, "lz4": 200, "lz4 claims less": 200}


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    bound(DEFAULT_BYTES)
    yield
    bound(DEFAULT_BYTES)


@pytest.mark.parametrize("kind", bombs.BUILDERS)
def test_batch_beyond_the_bound_is_refused(kind: str) -> None:
    with pytest.raises(BatchTooLarge, match="more than 32 MiB"):
        list(DefaultRecordBatch(bombs.bomb(kind, 33)))


@pytest.mark.parametrize("kind", [kind for kind in bombs.BUILDERS if kind != "lz4 claims less"])
@pytest.mark.parametrize("size_mib", [0, 1, 31])
def test_batch_within_the_bound_is_read(kind: str, size_mib: int) -> None:
    records, data = opened(DefaultRecordBatch(bombs.bomb(kind, size_mib)))
    (record,) = records
    assert record.value == bytes(size_mib * MIB)
    assert data is not None
    assert len(data) > size_mib * MIB


@pytest.mark.parametrize("kind", bombs.BUILDERS)
def test_bound_is_a_setting(kind: str) -> None:
    bound(2 * MIB)
    assert kind == "lz4 claims less" or list(DefaultRecordBatch(bombs.bomb(kind, 1)))
    with pytest.raises(BatchTooLarge, match="more than 2 MiB"):
        list(DefaultRecordBatch(bombs.bomb(kind, 3)))


_MEASURE = """
import json, resource, sys
from pathlib import Path
from aif_stream.bus.decompression import DECODERS, BatchTooLarge
def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
began, found = peak_mib(), {}
for file in map(Path, sys.argv[1:]):
    try:
        found[file.name] = len(DECODERS[file.name.split(".")[1] + "_decode"](file.read_bytes()))
    except BatchTooLarge:
        found[file.name] = peak_mib() - began
print(json.dumps(found))
"""


def test_refused_batches_take_no_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The peak of a process that meets one after the other grows by the bound, not by their size."""
    folder = tmp_path_factory.mktemp("bombs")
    payloads = {kind: bombs.payload_of(kind, bombs.parts_of(size)) for kind, size in SIZES.items()}
    payloads["snappy claims 4 GiB"] = b"\xff\xff\xff\xff\x0f" + bytes(100)
    payloads["snappy blocks"] = bombs.payload_of("snappy blocks", bombs.parts_of(64))
    files = []
    for kind, payload in payloads.items():
        files.append(folder / f"{kind}.{kind.split()[0]}")
        files[-1].write_bytes(payload)
    done = subprocess.run([sys.executable, "-c", _MEASURE, *files], capture_output=True, text=True, check=True)
    grown = json.loads(done.stdout)
    assert set(grown) == {file.name for file in files}
    assert max(grown.values()) < 3 * 32, grown


@pytest.mark.parametrize("kind", ["gzip members", "zstd frames", "snappy blocks"])
def test_pieces_read_as_aiokafka_reads_them(kind: str) -> None:
    parts = [b"a" * 10, b"", b"b" * 100_000, b"c"]
    payload = bombs.payload_of(kind, iter(parts))
    assert decompression.DECODERS[f"{kind.split(maxsplit=1)[0]}_decode"](payload) == b"".join(parts)


def test_padding_behind_gzip_is_read_as_before() -> None:
    assert decompression.gzip_decode(gzip.compress(b"abc") + bytes(10)) == b"abc"


@pytest.mark.parametrize(
    ("decode", "payload"),
    [
        (decompression.gzip_decode, gzip.compress(b"abc")[:-3]),
        (decompression.zstd_decode, bytes(cramjam.zstd.compress(b"abc"))[:-3]),
        (decompression.lz4_decode, bytes(cramjam.lz4.compress(b"abc"))[:-3]),
        (decompression.snappy_decode, bytes(cramjam.snappy.compress_raw(b"abc"))[:-3]),
        (decompression.snappy_decode, b""),
        (decompression.snappy_decode, b"\x82SNAPPY\x00" + struct.pack(">iii", 1, 1, -4)),
        (decompression.zstd_decode, b"no zstd"),
    ],
    ids=["gzip", "zstd", "lz4", "snappy", "empty snappy", "negative snappy block", "no zstd"],
)
def test_broken_payload_is_an_error(decode: Callable[[bytes], bytes], payload: bytes) -> None:
    with pytest.raises((EOFError, cramjam.DecompressionError)):
        decode(payload)


def test_every_parser_of_aiokafka_decompresses_here() -> None:
    """Fails when an upgrade of aiokafka moves the functions that ``bound`` replaces, or calls them otherwise."""
    from aiokafka.record import default_records, legacy_records
    from aiokafka.record._crecords import default_records as c_default
    from aiokafka.record._crecords import legacy_records as c_legacy

    for module in (default_records, c_default):
        assert {name: getattr(module, name) for name in decompression.DECODERS} == decompression.DECODERS
    for module in (legacy_records, c_legacy):
        for name in ("gzip_decode", "snappy_decode", "lz4_decode"):
            assert getattr(module, name) is decompression.DECODERS[name]
    assert MemoryRecords(bombs.bomb("zstd", 1)).next_batch().__class__ is c_default.DefaultRecordBatch


@pytest.mark.parametrize("parser", ["_DefaultRecordBatchPy", "DefaultRecordBatch"])
@pytest.mark.parametrize("kind", ["zstd", "gzip", "lz4", "snappy"])
def test_parser_calls_the_bounded_function(parser: str, kind: str) -> None:
    from aiokafka.record import default_records

    bound(1 * MIB)
    with pytest.raises(BatchTooLarge):
        list(getattr(default_records, parser)(bombs.bomb(kind, 2)))


@pytest.mark.parametrize("codec", [1, 2, 3])
def test_legacy_batches_are_bounded_too(codec: int) -> None:
    builder = LegacyRecordBatchBuilder(1, codec, 4 * MIB)
    builder.append(0, 1_000, None, bytes(2 * MIB))
    stored = bytes(builder.build())
    assert [len(record.value) for record in opened(LegacyRecordBatch(stored, 1))[0]] == [2 * MIB]
    bound(1 * MIB)
    with pytest.raises(BatchTooLarge):
        list(opened(LegacyRecordBatch(stored, 1))[0])


def test_record_of_a_million_headers_is_refused() -> None:
    """Two bytes in the batch, eighty in memory: within the bound they would be a gigabyte."""
    records, _ = opened(DefaultRecordBatch(bombs.many_headers(1_000_000)))
    with pytest.raises(BatchTooLarge, match="1000000 headers"):
        list(records)


def test_large_batch_of_small_records_is_read_whole() -> None:
    from aiokafka.record.default_records import DefaultRecordBatchBuilder

    builder = DefaultRecordBatchBuilder(2, 4, 0, -1, -1, -1, 16 * MIB)
    for number in range(4_000):
        builder.append(number, 1_000, b"k", b"%1000d" % number, [("h", b"v")])
    records, data = opened(DefaultRecordBatch(bytes(builder.build())))
    assert data is not None
    assert len(data) > 2 * MIB
    assert [int(record.value) for record in records] == list(range(4_000))
