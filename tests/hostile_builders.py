"""Records that no well-behaved producer sends: what a header's value or a JSON text may be at worst."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

Headers = Sequence[tuple[str, Any]]

DEEP = b'{"unknown":' * 3_000 + b"1" + b"}" * 3_000
"""An object, nested 3,000 deep in a field that nobody knows."""

VALUES: dict[str, bytes | None] = {
    "null": None,
    "empty": b"",
    "not UTF-8": b"\xff\xfe",
    "5,000 digits": b"9" * 5_000,
    "10^30": b"1" + b"0" * 30,
    "-10^400": b"-1" + b"0" * 400,
    "1e400": b"1e400",
    "NaN": b"NaN",
    "NUL": b"a\x00b",
    "1 MB": b"9" * 1_000_000,
}
"""What a header may hold, by name."""


def with_header(headers: Headers, name: str, value: bytes | None) -> list[tuple[str, Any]]:
    """The headers with this one in place of those of its name."""
    return [*(pair for pair in headers if pair[0] != name), (name, value)]


def bad_headers(headers: Headers, *names: str) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """(what is wrong, headers): every kind of value in each of the named headers."""
    for name in names:
        for kind, value in VALUES.items():
            yield f"{name}: {kind}", with_header(headers, name, value)


def deep_json(**fields: Any) -> bytes:
    """A JSON object with these fields and an unknown one that is nested too deep for any reader."""
    return json.dumps(fields).encode()[:-1] + b',"unknown":' + DEEP + b"}"


def version_values(good: bytes) -> dict[str, bytes]:
    """Values that no reader of ``aif.model-updates`` can use, made from a good record's value, by what is wrong."""
    fields = json.loads(good)

    def changed(**more: Any) -> bytes:
        return json.dumps({**fields, **more}).encode()

    numbers = (b"-1", b"1" + b"0" * 30, b"-1" + b"0" * 400, b"1e400", b"NaN", b"9" * 5_000, b'"1"', b"true")
    wrong = {"nested": DEEP, "nested list": b"[" * 3_000, "nested field": deep_json(**fields), "empty": b""}
    wrong |= {"not UTF-8": b"\xff", "not JSON": b"{", "NUL": b"\0", "a list": b"[]", "null": b"null"}
    wrong |= {"artefact with NUL": changed(artefact="a\0b"), "no artefact": changed(artefact="")}
    wrong |= {"long artefact": changed(artefact="/x" * 5_000), "artefact of another type": changed(artefact=5)}
    wrong |= {"another version": changed(version="of-another-key"), "no version's name": changed(version="a b")}
    for field in ("created_ms", "activation", "percent"):
        for number in numbers:
            if (field, number) != ("percent", b"true"):
                text = json.dumps({**fields, field: "~"}).encode().replace(b'"~"', number)
                wrong[f"{field} {number[:8].decode()}"] = text
    return wrong
