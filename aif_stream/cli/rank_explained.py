"""Explanations on a terminal: followed while they come, bars with signs, what is over as what it is."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import aiohttp
import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aif_stream.domain.explanations import FINAL, State
from aif_stream.errors import UpstreamError
from aif_stream.settings import Settings

SHOWN: Final = 3  # items that `--explain` explains: as many as fit on a screen
_WIDTH: Final = 16
_ROWS: Final = 6
# Longer than a worker that was killed is waited for; whoever wants to wait more asks GET /v1/explanations/ID.
_PATIENCE_S: Final = 60.0
_AGAIN_S: Final = 0.5
_STYLES: Final = {State.COMPLETE: "green", State.FAILED: "red", State.EXPIRED: "red", State.CANCELLED: "yellow"}
_TERMS: Final = {
    "match": "match of user and item",
    "item": "item's own share",
    "product": "user × item",
    "tiers": "similar items in the history",
    "signature": "signature over the history",
    "category": "same category before",
}


async def follow(settings: Settings, answer: dict[str, Any], *, show: bool) -> list[dict[str, Any]]:
    """Wait for the explanations that the answer started, showing them as they come; each as GET tells it at last."""
    started = answer.get("explanations", [])
    found = [{**each, "state": State.PENDING.value, "stages": {}, "reason": ""} for each in started]
    if not started:
        return found
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with aiohttp.ClientSession(settings.serve_url.rstrip("/"), timeout=timeout) as session:
        with Live(console=Console(stderr=not show), auto_refresh=False, transient=not show) as live:

            def draw() -> None:
                if show:
                    live.update(Group(*(_one(each) for each in found)), refresh=True)

            try:
                async with asyncio.timeout(_PATIENCE_S), asyncio.TaskGroup() as group:
                    for each in found:
                        group.create_task(_follow(session, each, draw))
            except TimeoutError:
                pass  # what is there is shown; the rest says that it is still awaited
            draw()
    return found


async def _follow(session: aiohttp.ClientSession, each: dict[str, Any], draw: Any) -> None:
    """Events until the final one, from the last id that came, however often the connection is cut."""
    last, path = "", f"/v1/explanations/{each['explanation_id']}/events"
    while State(each["state"]) not in FINAL:
        try:
            async with session.get(path, headers={"last-event-id": last} if last else {}) as reply:
                # 404: a server of an older version, whose record is still on its way to Redis.
                if reply.status == 200:
                    async for event in _events(reply):
                        last = event.pop("id", last)
                        _take(each, event)
                        draw()
        except (aiohttp.ClientError, OSError) as error:
            each["reason"] = f"reconnecting: {error}"
            draw()
        if State(each["state"]) not in FINAL:
            await asyncio.sleep(_AGAIN_S)


async def _events(reply: aiohttp.ClientResponse) -> Any:
    event: dict[str, Any] = {}
    async for raw in reply.content:
        field, _, value = raw.decode().rstrip("\n").partition(": ")
        if field == "id":
            event["id"] = value
        elif field == "data":
            event.update(orjson.loads(value))
        elif not field and event:
            yield event
            event = {}


def _take(each: dict[str, Any], event: dict[str, Any]) -> None:
    each["state"], each["reason"] = event["state"], event.get("reason", "")
    if "stage" in event:
        each["stages"][event["stage"]] = event["data"]


def _one(each: dict[str, Any]) -> RenderableType:
    state = State(each["state"])
    text = state.value if state in FINAL else f"explanation is loading ({state.value})"
    head = Text.assemble(("\nwhy ", "dim"), (each["item_id"], "bold"), "  ", (text, _STYLES.get(state, "yellow")))
    if each["reason"]:
        head.append(f"  {each['reason']}", style="dim")
    stages = each["stages"]
    parts: list[RenderableType] = [head]
    if "shapley" in stages:
        rows = [(one["name"], one["effect"], one["bar"]) for one in stages["shapley"]["groups"]]
        parts.append(_bars("refined: what each group adds (logits)" + _from_near(stages["shapley"]), rows))
    elif "native" in stages:
        rows = [(_TERMS.get(one["name"], one["name"]), one["effect"], 0.0) for one in stages["native"]["terms"]]
        parts.append(_bars("coarse: against the mean item of this answer (logits)", rows))
    if "native" in stages and stages["native"]["behaviors"]:
        rows = [(f"{one['kind']} of {one['item_id']}", one["effect"], 0.0) for one in stages["native"]["behaviors"]]
        parts.append(_bars("past behaviors that mattered", rows))
    if "counterfactual" in stages:
        parts.append(Text(_otherwise(stages["counterfactual"]), style="dim"))
    return Group(*parts)


def _bars(title: str, rows: list[tuple[str, float, float]]) -> RenderableType:
    table = Table(title=title, title_justify="left", title_style="dim", box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    most = max((abs(effect) for _, effect, _ in rows), default=0.0) or 1.0
    for name, effect, bar in rows[:_ROWS]:
        length = round(_WIDTH * abs(effect) / most)
        drawn = ("█" * length).rjust(_WIDTH) + "│" if effect < 0 else " " * _WIDTH + "│" + "█" * length
        value = f"{effect:+.3f}" + (f" ± {bar:.3f}" if bar else "")
        table.add_row(name, Text(drawn.ljust(2 * _WIDTH + 1), style="red" if effect < 0 else "green"), value)
    return table


def _from_near(stage: dict[str, Any]) -> str:
    """What a stage of a like user says of itself."""
    return f", of a like user: {stage['near']['disagreement']:.1%} off on average" if "near" in stage else ""


def _otherwise(stage: dict[str, Any]) -> str:
    if not stage["possible"]:
        return str(stage["why"])
    found = []
    if stage["behaviors"] is not None:
        names = ", ".join(f"{one['kind']} of {one['item_id']}" for one in stage["behaviors"]["remove"])
        found.append(f"below the cut without: {names}")
    if stage["item_changes"] is not None:
        found.append(f"or with {' and '.join(stage['item_changes']['replace'])} of item {stage['cut_item']}")
    return "; ".join(found) or "no small change moves it below the cut"


def check_started(answer: dict[str, Any]) -> None:
    """Raise when explanations were asked for and none began."""
    if answer["items"] and "explanations" not in answer:
        raise UpstreamError(
            "the server started no explanation", mend="it is busy (explain:unavailable) or older than these commands"
        )
