"""The observer of ``freshness_truth.py``, a process of its own: when did an update become visible, and where?"""

from __future__ import annotations

import http.client
import os
import socket
import time
from multiprocessing.connection import Connection
from typing import Any

import orjson

from aif_stream.domain.ids import key_of
from aif_stream.index.keys import Buckets, items_key
from aif_stream.index.wire import pack

POLL_S = 0.002
HOW_MANY = 0  # asked of it: how many it still waits for
EVENT_TIME_BYTES = 8  # an item's value begins with its order: event time, offset (domain/order.py)


class Watch:
    """The observer's process: what it waits for comes in, (stage, seen at ms, lag ms, error ms) goes out at the end."""

    def __init__(self, told: Connection, redis_port: int, serve_port: int, ids: list[str], buckets: int) -> None:
        self._told = told
        self._redis = socket.create_connection(("127.0.0.1", redis_port))
        self._redis.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        of = Buckets(buckets)
        keys = [key_of(name) for name in ids]
        self._ask = b"".join(pack("HGET", items_key(of.of(key)), key.to_bytes(8, "little")) for key in keys)
        self._count = len(ids)
        self._http = http.client.HTTPConnection("127.0.0.1", serve_port)
        self._body = orjson.dumps({"user_id": "observer", "candidates": ids, "k": 1, "replay": True})
        self._waiting: dict[str, list[int]] = {"redis": [], "mirror": []}
        self._missed_ms = {"redis": 0.0, "mirror": 0.0}
        self._found: list[tuple[str, float, float, float]] = []

    def run(self) -> None:
        newest_redis = 0
        while True:
            while self._told.poll():
                event_ms = self._told.recv()
                if event_ms == HOW_MANY:
                    self._told.send(max(map(len, self._waiting.values())))
                    continue
                if event_ms is None:
                    self._told.send((self._found, sum(map(len, self._waiting.values()))))
                    return
                for waiting in self._waiting.values():
                    waiting.append(event_ms)
            if self._waiting["redis"]:
                newest_redis = self._look("redis", self._in_redis)
            if self._waiting["mirror"] and self._waiting["mirror"][0] <= newest_redis:
                self._look("mirror", self._served)
            else:
                self._missed_ms["mirror"] = time.time() * 1e3  # Redis has it not, so no mirror has
            time.sleep(POLL_S)

    def _look(self, stage: str, ask: Any) -> int:
        begun_ms = time.time() * 1e3
        newest: int = ask()
        at_ms = (begun_ms + time.time() * 1e3) / 2
        waiting = self._waiting[stage]
        seen = [event_ms for event_ms in waiting if event_ms <= newest]
        for event_ms in seen:
            # An update that was sent after the last look was missed by nobody: it cannot be older than itself.
            missed_ms = max(self._missed_ms[stage], float(event_ms))
            visible_ms = (missed_ms + at_ms) / 2
            self._found.append((stage, at_ms, visible_ms - event_ms, (at_ms - missed_ms) / 2))
        self._waiting[stage] = [event_ms for event_ms in waiting if event_ms > newest]
        self._missed_ms[stage] = at_ms
        return newest

    def _in_redis(self) -> int:
        self._redis.sendall(self._ask)
        data = bytearray()
        newest, at, left = 0, 0, self._count
        while left:
            end = data.find(b"\r\n", at)
            size = int(data[at + 1 : end]) if end > 0 else None
            if size is None or (size >= 0 and len(data) < end + 4 + size):
                data += self._redis.recv(1 << 16)
                continue
            if size >= 0:
                newest = max(newest, int.from_bytes(data[end + 2 : end + 2 + EVENT_TIME_BYTES], "little"))
                at = end + 4 + size
            else:
                at = end + 2
            left -= 1
        return newest

    def _served(self) -> int:
        self._http.request("POST", "/v1/rank", self._body, {"content-type": "application/json"})
        answer = orjson.loads(self._http.getresponse().read())
        return int(answer.get("freshness", {}).get("newest_event_ms", 0))


def observe(told: Connection, redis_port: int, serve_port: int, ids: list[str], buckets: int) -> None:
    if os.geteuid() == 0:
        os.nice(-5)  # it is woken when it asked to be, whatever the load
    watch = Watch(told, redis_port, serve_port, ids, buckets)
    told.send("there")
    watch.run()
