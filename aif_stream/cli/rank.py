"""``aif rank USER``: one request, as a table."""

from __future__ import annotations

from typing import Any, Final

import aiohttp
import click
import orjson
from rich.console import Console
from rich.table import Table

from aif_stream.cli.entry import run_async, with_settings
from aif_stream.cli.rank_explained import SHOWN, check_started, follow
from aif_stream.cli.values import Finite
from aif_stream.errors import AifError, Overloaded, UpstreamError
from aif_stream.settings import Settings

_STAGES: Final = ("user", "retrieval", "join", "score", "total")
_PATIENCE_S: Final = 10.0  # beyond the request's own deadline: the server answers earlier or is not there


@click.command()
@click.argument("user")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="how many items")
@click.option("--candidates", help="item ids, separated by commas (default: retrieval names them)")
@click.option("--deadline-ms", type=Finite(min=0, min_open=True), help="the request's deadline")
@click.option("--explain", is_flag=True, help="explain the first items as well: wait for the reasons")
@click.option("--json", "as_json", is_flag=True, help="the answer as JSON on stdout")
@with_settings
def rank(
    settings: Settings,
    user: str,
    k: int,
    *,
    candidates: str | None,
    deadline_ms: float | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Rank candidates for USER on the running server (AIF_SERVE_URL, or the one that `aif up` started)."""
    body: dict[str, Any] = {"user_id": user, "k": k, "explain": min(k, SHOWN) if explain else False}
    if candidates is not None:
        body["candidates"] = [part.strip() for part in candidates.split(",") if part.strip()]
    if deadline_ms is not None:
        body["deadline_ms"] = deadline_ms
    answer = run_async(_ask(settings, body))
    if not as_json:
        _show(answer)
    if explain:
        check_started(answer)
        answer["explained"] = run_async(follow(settings, answer, show=not as_json))
    if as_json:
        click.echo(orjson.dumps(answer).decode())


async def _ask(settings: Settings, body: dict[str, Any]) -> dict[str, Any]:
    url = f"{settings.serve_url.rstrip('/')}/v1/rank"
    patience = aiohttp.ClientTimeout(total=_PATIENCE_S + settings.max_deadline_ms / 1000.0)
    try:
        async with aiohttp.ClientSession(timeout=patience) as session, session.post(url, json=body) as reply:
            data = orjson.loads(await reply.read())
            status = reply.status
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UpstreamError(
            f"{url} does not answer: {str(error) or type(error).__name__}", mend="start `aif up` or `aif serve`"
        ) from None
    except orjson.JSONDecodeError:
        raise UpstreamError(f"{url} is no aif serve", mend="set AIF_SERVE_URL") from None
    if status == 200 and isinstance(data, dict):
        return data
    raise _refused(status, data)


def _refused(status: int, data: Any) -> AifError:
    """The server's problem document as one line."""
    fields = [f"{e['field']}: {e['problem']}" for e in data.get("errors", []) if e.get("field")]
    text = "; ".join(fields) or data.get("detail", "no detail")
    return Overloaded(text) if status == 503 else UpstreamError(f"HTTP {status}: {text}")


def _show(answer: dict[str, Any]) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right", style="dim")
    table.add_column("item", overflow="fold")
    table.add_column("score", justify="right")
    for place, item in enumerate(answer["items"], 1):
        table.add_row(str(place), item["item_id"], f"{item['score']:.4f}")
    console.print(table)
    coverage, age, times = answer["coverage"], answer["freshness"]["age_ms"], answer["timings_ms"]
    console.print(
        f"version {answer['model_version']} · {coverage['scored']} of {coverage['candidates']} candidates scored"
        f" ({coverage['missing']} missing, {coverage['recomputed']} recomputed)"
        f" · rows {age['p50'] / 1000:.1f} s old (oldest {age['max'] / 1000:.1f} s)",
        highlight=False,
        soft_wrap=True,
    )
    stages = " · ".join(f"{stage} {times[stage]:.1f}" for stage in _STAGES)
    console.print(f"ms: {stages} · saved by overlap {times['overlap_saved']:.1f}", highlight=False, soft_wrap=True)
    if answer["degraded"]:
        console.print(f"fell short of: {', '.join(answer['degraded'])}", style="yellow")
