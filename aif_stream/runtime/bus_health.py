"""The doctor's look at Kafka: brokers, rights, topics, the broker's clock, groups beside marks, dead letters."""

from __future__ import annotations

from collections import Counter
from typing import Final

from aif_stream.bus import admin
from aif_stream.bus.broker_clock import broker_skew
from aif_stream.bus.connection import cluster_identity, read_cluster
from aif_stream.bus.groups import LIVE_GROUPS
from aif_stream.bus.letter_log import LetterLog
from aif_stream.bus.letters import LetterState
from aif_stream.bus.permissions import topic_rights
from aif_stream.bus.topics import contracts_dir, load_topics
from aif_stream.bus.watch import GroupWatch, Standing
from aif_stream.clock import now_ms
from aif_stream.errors import AifError
from aif_stream.index.connection import Redis
from aif_stream.index.marks import MarkBook
from aif_stream.runtime.findings import Finding, error, failed, ok, warning
from aif_stream.settings import Settings

# Clocks kept by NTP differ by milliseconds; from a second on, ages and lags in dashboards mislead.
SKEW_MS: Final = 1_000


async def check_broker(settings: Settings) -> list[Finding]:
    """Reachable, and by how many brokers. Raises ``BusUnavailable``."""
    info = await read_cluster(settings)
    missing = [spec.name for spec in load_topics(contracts_dir(settings)).values() if spec.replication > info.brokers]
    found = [ok("broker", f"{settings.kafka_bootstrap}: {info.brokers} broker(s), cluster {info.cluster_id}")]
    if missing:
        found.append(
            warning(
                "broker",
                f"{info.brokers} broker(s): the contracts want more copies of {len(missing)} topics",
                "three brokers for production: with one, its disk is the only copy",
            )
        )
    unready = [topic.name for topic in info.topics.values() if not topic.ready]
    if unready:
        found.append(error("broker", f"no leader for partitions of {', '.join(unready)}", "start the missing brokers"))
    return found


async def check_topics(settings: Settings) -> list[Finding]:
    """The contracts against the broker. Raises ``BusUnavailable``, ``TopicError``."""
    plan = await admin.plan(settings, load_topics(contracts_dir(settings)))
    missing = [topic.topic for topic in plan.create]
    found = []
    if missing:
        some = "" if len(missing) == 1 else f" ({len(missing)})"
        found.append(error("topics", f"missing{some}: {', '.join(missing)}", "aif topics apply"))
    for alteration in plan.alter:
        changes = ", ".join(f"{name} is {now}, not {want}" for name, (now, want) in alteration.config.items())
        if alteration.partitions:
            changes = ", ".join(filter(None, (changes, "{} partitions, not {}".format(*alteration.partitions))))
        make = error if "message.timestamp.type" in alteration.config else warning
        found.append(make("topics", f"{alteration.topic}: {changes}", "aif topics apply"))
    found += [warning("topics", f"{refusal.topic} {refusal.problem}", refusal.mend) for refusal in plan.refused]
    if not found:
        notes = f" ({'; '.join(plan.notes)})" if plan.notes else ""
        found.append(ok("topics", f"as the contracts say{notes}"))
    return found


async def check_rights(settings: Settings) -> list[Finding]:
    """What this user may do on each topic. Raises ``BusUnavailable``."""
    rights = await topic_rights(settings, load_topics(contracts_dir(settings)))
    denied = [right for right in rights if right.denied]
    who = settings.kafka_username or "this client"
    return [
        error(
            "permissions",
            f"{right.topic}: {who} is denied {', '.join(right.denied)}",
            "allow it (ACL), or use the user that the roles use",
        )
        for right in denied
    ] or [ok("permissions", f"{who} may read, write and describe every topic")]


async def check_broker_clock(settings: Settings) -> list[Finding]:
    """One record's append time beside our clock. Raises ``BusUnavailable``, ``PublishError``."""
    skew = await broker_skew(settings)
    if skew is None:
        return [ok("clocks", "this broker does not stamp records (the embedded one): nothing to compare")]
    return [skew_finding("the broker's clock", skew.ahead_ms, skew.within_ms, settings.max_ahead_ms)]


def skew_finding(whose: str, ahead_ms: float, within_ms: float, max_ahead_ms: int) -> Finding:
    """``ahead_ms`` against ours, true within ``within_ms``."""
    apart_ms = max(0.0, abs(ahead_ms) - within_ms)
    what = f"{whose} is {abs(ahead_ms):,.0f} ms {'ahead of' if ahead_ms > 0 else 'behind'} this host's"
    if apart_ms > max_ahead_ms:
        return error("clocks", f"{what}: events of this host are refused or hold back later ones", "run NTP (chrony)")
    if apart_ms > SKEW_MS:
        return warning("clocks", f"{what}: ages and lags mislead by as much", "run NTP (chrony) on every host")
    return ok("clocks", f"{what} (± {within_ms:.0f})")


async def check_marks(settings: Settings, redis: Redis) -> list[Finding]:
    """What Redis proves beside what the groups have committed. Raises what Kafka and Redis raise."""
    found: list[Finding] = []
    for group, topic in LIVE_GROUPS.items():
        try:
            async with GroupWatch(settings, group, [topic]) as watch:
                standing = await watch.standing()
            marks = MarkBook(redis, await cluster_identity(settings, topic))
            for partition, stands in standing.items():
                mark = await marks.read(partition.number)
                found += _compare(f"{group} on {topic}/{partition.number}", stands, mark)
        except AifError as problem:
            found.append(failed("marks", problem))
    return found or [ok("marks", "every mark in Redis is at its group's commit or after it")]


def _compare(where: str, stands: Standing, mark: int | None) -> list[Finding]:
    committed = stands.committed
    if committed is None:
        if mark is None and stands.end > stands.beginning:
            waiting = stands.end - stands.beginning
            return [warning("marks", f"{where}: {waiting:,} records, no commit and no mark", "start aif nearline")]
        return []
    # Nothing to prove: what was committed is no longer in the log, or nothing ever was.
    if committed <= stands.beginning or (mark is not None and mark >= committed):
        return []
    says = "nothing (it was emptied?)" if mark is None else f"{mark:,}"
    return [
        warning(
            "marks",
            f"{where}: committed {committed:,}, Redis proves {says}",
            "a running worker goes back and replays by itself; start aif nearline and look at aif lag",
        )
    ]


async def check_letters(settings: Settings) -> list[Finding]:
    """Dead letters that wait, and redrives that died. Raises ``BusUnavailable``, ``TopicError``."""
    async with LetterLog(settings) as letters:
        book = letters.book
        waiting = book.in_state(LetterState.OPEN)
        now = now_ms()
        left = [entry for entry in book.in_state(LetterState.CLAIMED) if entry.free(now)]
    found = []
    if waiting:
        reasons = Counter(entry.head.reason for entry in waiting)
        most = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(4))
        found.append(
            warning("dead letters", f"{len(waiting):,} wait: {most}", "aif dlq ls, then redrive or purge --discard")
        )
    if left:
        found.append(
            warning(
                "dead letters", f"{len(left):,} were claimed by a redrive that died", "aif dlq redrive takes them up"
            )
        )
    return found or [ok("dead letters", "none wait")]
