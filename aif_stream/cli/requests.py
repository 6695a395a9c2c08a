"""``aif requests export``: the request log of a time range as lines."""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from aif_stream.cli.entry import run_async, with_settings
from aif_stream.settings import Settings


@click.group()
def requests() -> None:
    """The request log (aif.requests): what was asked and answered."""


@requests.command()
@click.option("--since", default="-1h", show_default=True, metavar="T", help="-15m, -1h, -2d, RFC 3339, or ms")
@click.option("--until", default="now", show_default=True, metavar="T", help="the same, or now; not included")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@with_settings
def export(settings: Settings, since: str, until: str, file: Path, as_json: bool) -> None:
    """Write the requests that arrived from SINCE until UNTIL to FILE, in the order of their arrival.

    One JSON object per line: request, candidates, the answer's items with scores, version, ages, timings. Compressed
    with zstd when FILE ends in .zst. `aif replay FILE` plays them again.
    """
    from aif_stream.clock import now_ms, to_rfc3339
    from aif_stream.replay.export import export_requests
    from aif_stream.replay.lines import parse_time

    now = now_ms()
    since_ms, until_ms = parse_time(since, now), parse_time(until, now)
    if since_ms >= until_ms:
        raise click.UsageError(f"--since {since} is not before --until {until}")
    count = run_async(export_requests(settings, since_ms, until_ms, file))
    if as_json:
        shape = {"requests": count, "since_ms": since_ms, "until_ms": until_ms, "file": str(file)}
        click.echo(orjson.dumps(shape).decode())
    else:
        click.echo(f"{count:,} requests from {to_rfc3339(since_ms)} until {to_rfc3339(until_ms)} → {file}")
