"""``aif bench``: performance beside peers and limits, on servers of its own."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

_REST = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": ["--help", "-h"]}


@click.group()
def bench() -> None:
    """Measure this machine: rank, nearline, join, kernels; each on an embedded stack of its own.

    A figure says something about the system only on a machine that does nothing else; the result carries the load.
    """


def _verb(name: str, text: str) -> None:
    @bench.command(name, help=text, context_settings=_REST)
    @click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
    @click.option("--quick", is_flag=True, help="small sizes: does it run, and roughly how fast")
    @click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF benchmarks/…]")
    def verb(as_json: bool, quick: bool, more: Sequence[str]) -> None:
        module = importlib.import_module(f"aif_stream.bench.{name}")
        options = module.parser().parse_args([*(module.QUICK if quick else []), *more])
        with _stdout_for_data():  # a benchmark tells its progress by print
            found = module.result_of(options)
        if as_json:
            click.echo(orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY))
        else:
            for table in _tables(f"aif bench {name}", found):
                Console().print(table)


@contextlib.contextmanager
def _stdout_for_data() -> Iterator[None]:
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _tables(title: str, found: Mapping[str, Any]) -> Iterator[Table]:
    """A list of alike objects becomes rows; everything else lines of name and value."""
    plain = Table(title=title)
    plain.add_column("what")
    plain.add_column("value", justify="right")
    for name, value in _flat(found):
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            rows = [dict(_flat(each)) for each in value]
            table = Table(title=f"{title}: {name}")
            for column in rows[0]:
                table.add_column(column)
            for row in rows:
                table.add_row(*(str(row.get(column, "")) for column in rows[0]))
            yield table
        else:
            plain.add_row(name, str(value))
    yield plain


def _flat(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name} ")
        else:
            yield f"{above}{name}", value


_verb("rank", "One `aif serve` on one core: latencies by stage, closed and open loads, CPU per answer.")
_verb(
    "nearline",
    "One worker on one core: topic → committed rows (Apache Kafka, by Maven), lag at a steady rate, CPU by part.",
)
_verb("join", "10,000 rows: the mirror beside one read of Redis and redis-py's MGET.")
_verb("kernels", "The compiled kernels beside numpy and faiss.")
