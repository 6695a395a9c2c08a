"""The key of the exact cache."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from aif_stream.domain.explanations import ExplanationTask
from aif_stream.domain.facts import Facts


def facts_digest(facts: Facts, task: ExplanationTask) -> str:
    """Everything that the result follows from: version, user, rows, the answer's scores, item and method."""
    head = facts.head
    digest = blake2b(digest_size=16)
    items = [(item.item_id, item.score) for item in head.items]
    for part in (
        msgspec.json.encode([head.version, head.attributes, head.k, items, head.cut, task.item_id, task.method]),
        facts.entries.tobytes(),
        facts.newest.tobytes(),
        facts.history_rows,
        facts.item_rows,
    ):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
