"""MovieLens 100K through the whole system: events → topics → rows → trained model → ranked users → one film changes.

    python experiments/movielens.py DIR [--out experiments/results/movielens.json]

Starts a stack of its own (``aif up --items 0``), uses only the public commands and HTTP, and prints what it saw.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import click
import orjson

from aif_stream.training.movielens import MovieLens

AIF = [sys.executable, "-m", "aif_stream"]


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/movielens.json"))
@click.option("--changes", default=50, show_default=True, help="films whose genre is replaced")
def main(data: Path, out: Path, changes: int) -> None:
    with tempfile.TemporaryDirectory(prefix="aif-movielens-") as scratch:
        home = Path(scratch)
        environ = {**os.environ, "AIF_HOME": str(home), "OMP_NUM_THREADS": "1"}
        up = subprocess.Popen([*AIF, "up", "--items", "0", "--port", "0"], stdout=subprocess.PIPE, env=environ)
        try:
            assert up.stdout is not None
            url = up.stdout.readline().decode().split()[1]
            result = run(data, home, environ, url, changes)
        finally:
            up.terminate()
            up.wait(60)
    out.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    print(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())


def run(data: Path, home: Path, environ: dict[str, str], url: str, changes: int) -> dict[str, Any]:
    movies = MovieLens(data)
    items = {line["item_id"]: line for line in movies.items()}
    lines = {"items": items.values(), "users": movies.profiles(), "behaviors": movies.behaviors()}
    result: dict[str, Any] = {"published": {}}
    for kind, rows in lines.items():
        file = home / f"{kind}.jsonl"
        file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        done = aif(environ, "publish", kind, str(file), "--json")
        result["published"][kind] = {name: done[name] for name in ("sent", "acknowledged", "rejected")}
    model = home / "movielens-1"
    aif(environ, "train", f"movielens:{data}", "--out", str(model), "--json")
    result["quality"] = aif(environ, "evaluate", str(model), f"movielens:{data}", "--json")
    record = aif(environ, "model", "publish", str(model), "--activate", "--json")
    result["version"] = record["version"]
    result |= asyncio.run(
        rank_and_change(url, record["version"], [row["user_id"] for row in movies.profiles()], items, changes)
    )
    return result


def aif(environ: dict[str, str], *words: str) -> Any:
    done = subprocess.run([*AIF, *words], env=environ, check=True, stdout=subprocess.PIPE)
    return orjson.loads(done.stdout)


async def rank_and_change(
    url: str, version: str, users: list[Any], items: dict[Any, dict[str, Any]], changes: int
) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session:
        await until_served(session, url, version)
        answers = [await rank(session, url, user, 20) for user in users]
        chance = random.Random(1)
        waits = [await change_one(session, url, chance.choice(users), items, chance) for _ in range(changes)]
    totals = [answer["timings_ms"]["total"] for answer in answers]
    return {
        "users_ranked": len(answers),
        "answers_in_full": sum(not answer["degraded"] for answer in answers),
        "candidates_p50": statistics.median(answer["coverage"]["candidates"] for answer in answers),
        "distinct_top_20": len({tuple(row["item_id"] for row in answer["items"]) for answer in answers}),
        "total_ms_p50": round(statistics.median(totals), 2),
        "genre_changes": changes,
        "answer_changed_after_ms": {
            "p50": round(statistics.median(waits), 1),
            "max": round(max(waits), 1),
        },
    }


async def rank(session: aiohttp.ClientSession, url: str, user: Any, k: int, **more: Any) -> Any:
    async with session.post(f"{url}/v1/rank", json={"user_id": user, "k": k, **more}) as reply:
        assert reply.status == 200, await reply.text()
        return await reply.json()


async def until_served(session: aiohttp.ClientSession, url: str, version: str) -> None:
    async with asyncio.timeout(60):
        while True:
            async with session.get(f"{url}/readyz") as reply:
                if reply.status == 200 and (await reply.json()).get("model_version", version) == version:
                    return
            await asyncio.sleep(0.1)


async def change_one(
    session: aiohttp.ClientSession, url: str, user: Any, items: dict[Any, dict[str, Any]], chance: random.Random
) -> float:
    """Replace the genre of a film in the user's list; ms from the request to publish until the score moves."""
    best = (await rank(session, url, user, 20))["items"]
    chosen = chance.choice(best)
    film = items[next(key for key in items if str(key) == chosen["item_id"])]
    genres = sorted({genre for row in items.values() for genre in row["attributes"]["genres"]})
    new = chance.choice([genre for genre in genres if genre not in film["attributes"]["genres"]])
    changed = {**film, "category": new, "attributes": {**film["attributes"], "genres": [new]}}
    began = time.perf_counter()
    async with session.post(f"{url}/v1/events/items", json=changed) as reply:
        assert reply.status == 202, await reply.text()
    while True:
        answer = await rank(session, url, user, 1, candidates=[chosen["item_id"]])
        if answer["items"][0]["score"] != chosen["score"]:
            return (time.perf_counter() - began) * 1000
        if time.perf_counter() - began > 10:
            raise AssertionError(f"film {chosen['item_id']} still scores {chosen['score']} after 10 s")


if __name__ == "__main__":
    main()
