"""The gate before a version answers: every row there and right, and an opinion that resembles the active version's.

It reads and changes nothing. A retrained model differs legitimately, so the limits catch a broken one (equal scores, an
inverted or random ranking, scores of another size, rows of another model), not a worse one: that is for a canary and
for `aif evaluate` to tell.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from aif_stream.bus.versions import read_versions
from aif_stream.clock import monotonic_s
from aif_stream.domain.versions import VersionBook, VersionRecord
from aif_stream.errors import AifError, ArtefactError, VersionError
from aif_stream.index.connection import open_redis
from aif_stream.index.coverage import Coverage, count_coverage
from aif_stream.index.histories import HistoryStore
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.model.artefact import load, manifest_sha256
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.activation import EVERYBODY, known, open_activation
from aif_stream.nearline.agreement import Agreement, agree
from aif_stream.nearline.gate_samples import Parity, row_parity, sample_requests, score_both
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: ``value`` against ``limit``, and in words."""

    name: str
    passed: bool
    value: float
    limit: float
    detail: str

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} (limit {self.limit:.4g}): {self.detail}"


@dataclass(frozen=True, slots=True)
class GateReport:
    """``compared_with`` None: no other version answers. ``requests_from``: log, sampled; "" where none are."""

    version: str
    compared_with: str | None
    requests_from: str
    checks: tuple[Check, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    def facts(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**msgspec.to_builtins(self), "passed": self.passed}


class GateRefused(VersionError):
    """A version fell short; ``report`` says of what. What answers is as it was."""

    def __init__(self, report: GateReport) -> None:
        short = "; ".join(map(str, report.failures))
        super().__init__(
            f"version {report.version} does not pass its gate: {short}",
            mend='mend it, or aif model activate V --force --reason "…"; the limits are AIF_GATE_… settings',
        )
        self.report = report


async def judge(settings: Settings, version: str) -> GateReport:
    """Look at a version that is rebuilt. Ends within ``gate_timeout_s``.

    Raises ``VersionError`` when it is unknown or took too long, ``ArtefactError``, ``BusUnavailable``,
    ``IndexUnavailable``, ``IndexRefused``.
    """
    start_s = monotonic_s()
    book = await read_versions(settings)
    record = known(book, version)
    try:
        async with asyncio.timeout(settings.gate_timeout_s), open_redis(settings) as redis:
            model = await asyncio.to_thread(_loaded, record)
            store = N2OStore(redis, Buckets(settings.index_buckets))
            checks = [_covered(await count_coverage(redis, version, range(store.buckets.count)))]
            checks.append(_right(await row_parity(redis, store, model, settings.gate_row_sample)))
            running = _running(book, version)
            source = ""
            if running is not None:
                old = await asyncio.to_thread(_loaded, running)
                source, asked = await sample_requests(settings, redis, store)
                histories = HistoryStore(redis, settings.history_long)
                pairs = await score_both(store, histories, old, model, asked)
                checks += _agreeing(settings, await asyncio.to_thread(agree, pairs), source)
    except TimeoutError:
        raise VersionError(
            f"the gate of version {version} did not end within {settings.gate_timeout_s:g} s",
            mend="raise AIF_GATE_TIMEOUT_S, or lower AIF_GATE_REQUESTS and AIF_GATE_ROW_SAMPLE",
        ) from None
    compared_with = running.version if running is not None else None
    report = GateReport(version, compared_with, source, tuple(checks), round(monotonic_s() - start_s, 3))
    failed = ",".join(check.name for check in report.failures) or "-"
    log.info(kv("gate.judged", version=version, passed=report.passed, failed=failed, seconds=report.seconds))
    return report


async def activate_judged(
    settings: Settings, version: str, percent: float = EVERYBODY, force: str = ""
) -> tuple[VersionRecord, GateReport | None]:
    """Activate a version (for ``percent`` of the users) that passes its gate, or, with a reason in ``force``, in spite
    of it: reason and shortcomings go into the record's note. The report is None when the version answers already.

    Raises ``GateRefused`` when it does not pass, ``VersionError`` as ``Activation.activate`` and ``judge`` do.
    """
    async with open_activation(settings) as activation:
        book = await read_versions(settings)
        await activation.check_ready(book, version)
        if book.active == version and percent >= EVERYBODY:
            return book.records[version], None
        note, report = "", None
        try:
            report = await judge(settings, version)
            if not report.passed:
                raise GateRefused(report)
        except AifError as error:
            if not force:
                raise
            note = f"forced: {force} ({error.what})"
            log.warning(kv("gate.forced", version=version, reason=force, problem=error.what))
        return await activation.activate(version, percent, note), report


def _running(book: VersionBook, version: str) -> VersionRecord | None:
    """What the version is compared with: the active one (the canary's own gate looks at that, too)."""
    return book.records[book.active] if book.active is not None and book.active != version else None


def _loaded(record: VersionRecord) -> ModelVersion:
    directory = Path(record.artefact)
    if manifest_sha256(directory) != record.manifest_sha256:
        raise ArtefactError(
            f"{directory} is not what was published as {record.version}", mend="put the published artefact back"
        )
    return load(directory)


def _covered(found: Coverage) -> Check:
    gaps = f"{found.missing:,} without a row, {found.other:,} with one of another state"
    detail = f"{found.living:,} items: {gaps}; {found.invalid:,} whose features it cannot use"
    return Check("coverage", found.missing + found.other == 0, found.share, 1.0, detail)


def _right(found: Parity) -> Check:
    share = 1.0 - found.wrong / found.looked if found.looked else 1.0
    examples = f" (items {', '.join(found.examples)})" if found.examples else ""
    detail = f"{found.looked:,} rows computed anew, {found.wrong:,} are not what is stored{examples}"
    return Check("row_parity", not found.wrong, share, 1.0, detail)


def _agreeing(settings: Settings, found: Agreement, source: str) -> Iterator[Check]:
    where = f"{found.requests} requests " + ("of the log" if source == "log" else "sampled from users and items")
    least, overlap, most = (
        settings.gate_min_rank_correlation,
        settings.gate_min_overlap,
        settings.gate_max_score_shift,
    )
    for name, wrong, why in (
        ("finite_scores", found.unfinite, "a score is NaN or infinite"),
        ("distinct_scores", found.flat, "all scores are equal"),
    ):
        share = 1.0 - wrong / found.requests if found.requests else 1.0
        yield Check(name, not wrong, share, 1.0, f"share of {where}; in {wrong} {why}")
    yield Check("rank_correlation", found.correlation >= least, found.correlation, least, f"mean over {where}")
    yield Check("overlap", found.overlap >= overlap, found.overlap, overlap, f"best tenth in both, mean over {where}")
    yield Check("score_shift", found.shift <= most, found.shift, most, f"in deviations, median over {where}")
