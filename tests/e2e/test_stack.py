"""``aif up`` as a user has it: one process, one ready line, every verb and every address of the outside contract."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.up import Up, family, running, with_command
from tests.stack import eventually

ITEMS, USERS = 300, 30

# contract.md, "Metrics", of the roles that exist. Series with labels appear with a first sample, their type at once.
SERVE_METRICS = (
    *("aif_freshness_lag_seconds", "aif_served_age_seconds", "aif_rank_seconds", "aif_overlap_saved_seconds"),
    *("aif_rank_degraded_total", "aif_mirror_rows", "aif_model_version_info"),
)
NEARLINE_METRICS = (
    *("aif_freshness_lag_seconds", "aif_watermark_age_seconds", "aif_consumer_lag_records", "aif_rows_written_total"),
    *("aif_rows_rejected_older_total", "aif_dead_letters_total", "aif_rebuild_progress_ratio"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    async with running(tmp_path_factory.mktemp("home"), items=ITEMS, users=USERS) as stack:
        yield stack


async def test_the_ready_line_is_true_and_run_toml_leads_every_other_verb_there(up: Up) -> None:
    assert up.settings()["serve_url"] == up.url
    assert (up.home / "run.toml").stat().st_mode & 0o077 == 0, "only its owner may read the addresses"
    answer = await up.json("rank", "1", "-k", "5")
    assert len(answer["items"]) == 5
    assert answer["degraded"] == []
    assert answer["coverage"]["candidates"] == answer["coverage"]["scored"] > 5


async def test_an_answer_has_every_key_of_the_contract(up: Up) -> None:
    answer = await up.rank(user_id=2, k=3, candidates=["1", 2, 3, 4, "absent"])
    assert set(answer) >= {
        *("request_id", "model_version", "items", "coverage", "freshness", "degraded", "timings_ms"),
    }
    assert [set(item) for item in answer["items"]] == [{"item_id", "score"}] * 3
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["coverage"] == {"candidates": 5, "scored": 4, "recomputed": 0, "missing": 1}
    assert set(answer["freshness"]) >= {"age_ms", "stale"}
    assert 0 <= answer["freshness"]["age_ms"]["p50"] <= answer["freshness"]["age_ms"]["max"]
    assert set(answer["timings_ms"]) >= {"user", "retrieval", "join", "score", "total", "overlap_saved"}
    assert answer["timings_ms"]["total"] > 0


async def test_the_same_request_has_the_same_scores(up: Up) -> None:
    candidates = list(range(100, 200))
    answers = [await up.rank(user_id=3, k=100, candidates=candidates) for _ in range(3)]
    assert answers[0]["items"] == answers[1]["items"] == answers[2]["items"]


async def test_a_published_item_changes_its_score_and_no_other(up: Up) -> None:
    before, other = await up.score("7"), await up.score("8")
    done = await up.json("publish", "item", "7", "category=somewhere else", "price=1e3", 'tags=["odd"]')
    assert done == {"sent": 1, "acknowledged": 1, "rejected": 0, "rejects": [], "interrupted": False}

    async def changed() -> bool:
        return await up.score("7") != before

    await eventually(changed, what="item 7 has another score")
    assert await up.score("8") == other


async def test_a_removed_item_is_missing_and_an_older_event_does_not_bring_it_back(up: Up) -> None:
    assert await up.score("9") is not None
    assert (await up.json("publish", "remove", "9"))["acknowledged"] == 1

    async def missing() -> bool:
        return await up.score("9") is None

    await eventually(missing, what="item 9 is missing")
    rejected = await _sample(up, "aif_rows_rejected_older_total")
    assert (await up.json("publish", "item", "9", "category=tea", "event_time_ms=1000"))["acknowledged"] == 1

    async def older_rejected() -> bool:
        return await _sample(up, "aif_rows_rejected_older_total") > rejected

    await eventually(older_rejected, what="the worker has rejected the older event")
    assert await up.score("9") is None


async def _sample(up: Up, series: str) -> float:
    lines = (await up.text("/metrics", base=up.nearline)).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == series)


async def test_events_posted_to_the_server_become_rows_and_wrong_ones_are_told_by_line(up: Up) -> None:
    lines = [{"item_id": "posted", "category": "tea"}, {"item_id": -1, "category": "tea"}, {"item_id": 5}]
    async with up.http.post(f"{up.url}/v1/events/items", json=lines) as reply:
        report = await reply.json()
        assert reply.status == 202, report
    assert (report["sent"], report["acknowledged"], report["rejected"]) == (1, 1, 2)
    assert [reject["line"] for reject in report["rejects"]] == [2, 3]
    assert "item_id" in report["rejects"][0]["problem"]
    assert "category" in report["rejects"][1]["problem"]

    async def ranked() -> bool:
        return await up.score("posted") is not None

    await eventually(ranked, what="the posted item is ranked")


async def test_probes_openapi_and_dashboard_answer(up: Up) -> None:
    for probe in ("/livez", "/readyz", "/startupz"):
        assert json.loads(await up.text(probe))["status"] in ("alive", "ready", "started")
        assert json.loads(await up.text(probe, base=up.nearline))["status"] in ("alive", "ready", "started")
    document = json.loads(await up.text("/openapi.json"))
    assert document["openapi"].startswith("3.")
    assert {"/v1/rank", "/v1/events/items"} <= set(document["paths"])
    assert "<html" in (await up.text("/")).lower()


async def test_metrics_have_the_names_of_the_contract(up: Up) -> None:
    await up.rank(user_id=1)
    serve, nearline = await up.text("/metrics"), await up.text("/metrics", base=up.nearline)
    assert [name for name in SERVE_METRICS if f"# TYPE {name} " not in serve] == []
    assert [name for name in NEARLINE_METRICS if f"# TYPE {name} " not in nearline] == []
    assert 'aif_rank_seconds_count{stage="total"}' in serve
    assert 'aif_freshness_lag_seconds_count{stage="mirror"}' in serve
    assert 'aif_freshness_lag_seconds_count{stage="redis"}' in nearline
    assert 'aif_consumer_lag_records{group="aif.nearline",partition="0",topic="aif.item-updates"}' in nearline


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/rank", b'{"user_id": 1', 400, None),
        ("/v1/rank", b"{}", 422, "user_id"),
        ("/v1/rank", b'{"user_id": -1}', 422, "user_id"),
        ("/v1/rank", b'{"user_id": 1, "k": "ten"}', 422, "k"),
        ("/v1/rank", b'{"user_id": 1, "k": 1000000}', 422, "k"),
        ("/v1/rank", b'{"user_id": 1, "candidates": [1, -2]}', 422, "candidates[1]"),
        ("/v1/rank", b'{"user_id": "' + b"x" * 3_000_000 + b'"}', 413, None),
        ("/v1/events/items", b'{"item_id": 1, "category": 1.5}', 422, "category"),
        ("/v1/absent", b"{}", 404, None),
        ("/livez", b"{}", 405, None),
    ],
)
async def test_a_wrong_request_is_a_problem_document_that_names_the_field(
    up: Up, path: str, body: bytes, status: int, field: str | None
) -> None:
    json_type = {"content-type": "application/json"}
    async with up.http.post(up.url + path, data=io.BytesIO(body), headers=json_type) as reply:
        assert reply.status == status, await reply.text()
        assert reply.content_type == "application/problem+json"
        problem = await reply.json(content_type=None)
    assert set(problem) >= {"type", "title", "status", "detail", "errors"}
    assert problem["status"] == status
    assert [error["field"] for error in problem["errors"]] == ([] if field is None else [field])


async def test_every_listing_verb_prints_one_json_document(up: Up) -> None:
    (version,) = await up.json("model", "list")
    assert set(version) >= {"version", "state", "coverage", "created_ms"}
    assert (version["state"], version["coverage"]) == ("active", 1.0)
    (status,) = await up.json("model", "status")
    assert set(status["rebuild"]) >= {"done", "total", "items_per_s", "eta_s"}
    topics = await up.json("topics", "describe")
    assert {"aif.item-updates", "aif.n2o-rows", "aif.dead-letters"} <= {topic["topic"] for topic in topics}
    assert all({"topic", "partitions", "replication", "cleanup"} <= set(topic) for topic in topics)
    plan = await up.json("topics", "plan")
    assert (plan["create"], plan["alter"], plan["refused"]) == ([], [], [])
    config = await up.json("config", "show")
    assert config["kafka_bootstrap"]["origin"] == str(up.home / "run.toml")
    assert config["batch_events"]["origin"] == "default"


async def test_a_rejected_line_is_exit_3_and_a_wrong_word_exit_2(up: Up, tmp_path: Path) -> None:
    lines = tmp_path / "items.jsonl"
    lines.write_text('{"item_id": "good", "category": "tea"}\n{"item_id": "bad"}\n')
    ended = await up.aif("publish", "items", str(lines), "--rejects", str(tmp_path / "rejects"), "--json")
    assert ended.code == 3
    assert json.loads(ended.out)["rejects"] == [{"line": 2, "problem": json.loads(ended.out)["rejects"][0]["problem"]}]
    assert json.loads((tmp_path / "rejects").read_text())["line"] == 2
    assert (await up.aif("publish", "item", "7", "no equals sign")).code == 2


async def test_sigterm_ends_everything_in_order_with_exit_0(tmp_path: Path) -> None:
    async with running(tmp_path / "home", items=0, users=0) as stack:
        home = stack.home
        assert len(with_command(home, "aif_stream")) >= 4, "up, nearline, retrieval, serve"
        directory = Path(stack.settings()["models_dir"]).parent
        # Redis writes its title over its environment, so it is asked for by its address.
        servers = [stack.settings()["redis_url"].removesuffix("/0"), stack.settings()["kafka_bootstrap"], stack.url]
        assert [await _listens(server) for server in servers] == [True, True, True]
        stack.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await stack.process.wait() == 0, stack.err.read_text()
        assert not (home / "run.toml").exists()
        assert family(home) == {}
        assert [await _listens(server) for server in servers] == [False, False, False]
        assert not directory.exists(), "without --data nothing outlives the stack"


async def _listens(address: str) -> bool:
    host, _, port = address.rpartition("/")[2].partition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def test_role_that_dies_is_the_cause_that_aif_up_ends_with(tmp_path: Path) -> None:
    async with running(tmp_path / "home", items=0, users=0) as stack:
        (nearline,) = with_command(stack.home, "-m aif_stream nearline")
        (monitor,) = with_command(stack.home, "-m aif_stream monitor")
        os.kill(monitor, signal.SIGSTOP)  # does not stop: is killed after its time, which is told and hides nothing
        os.kill(nearline, signal.SIGKILL)
        async with asyncio.timeout(90):
            assert await stack.process.wait() == 1
        lines = stack.err.read_text().strip().splitlines()
        assert lines[-1].startswith("error: aif nearline ended by itself (SIGKILL) → read ")
        assert "nearline.started" in await asyncio.to_thread(Path(lines[-1].rsplit("read ", 1)[1]).read_text)
        assert any("aif monitor did not stop within 20 s and was killed" in line for line in lines)
        assert not any("Traceback" in line for line in lines)
        assert not (stack.home / "run.toml").exists()
        assert family(stack.home) == {}


async def test_sigterm_while_aif_up_starts_ends_everything(tmp_path: Path) -> None:
    home, err = tmp_path / "home", tmp_path / "err"
    with err.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aif_stream", "up", "--items", "300", "--users", "30", "--port", "0"),
            env={**os.environ, "AIF_HOME": str(home), "OMP_NUM_THREADS": "1"},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
        )
    try:

        async def trains() -> bool:
            return bool(with_command(home, "-m aif_stream train"))

        await eventually(trains, what="the first model is trained", within_s=120)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await process.wait() == 0, err.read_text()
        assert "Traceback" not in err.read_text()
        assert family(home) == {}
    finally:
        for pid in family(home):
            os.kill(pid, signal.SIGKILL)
        await process.wait()
