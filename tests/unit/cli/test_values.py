"""Values of options, and foreign text on its way to a terminal."""

from __future__ import annotations

import click
import pytest

from aif_stream.cli.values import Finite, Since, plain


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "-1"])
def test_a_limit_that_nothing_can_pass_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Finite(min=0).convert(text, None, None)
    assert Finite(min=0).convert("0.5", None, None) == 0.5


@pytest.mark.parametrize("text", ["10m", "-10m", "2026-01-31T12:00:00Z", "1700000000000"])
def test_every_verb_takes_the_same_times(text: str) -> None:
    assert Since().convert(text, None, None) > 0
    with pytest.raises(click.BadParameter, match="yesterday"):
        Since().convert("yesterday", None, None)


def test_a_foreign_record_cannot_speak_to_the_terminal() -> None:
    assert plain("a\x1b[2J\x9b1m\x07\r\tb\nprice: 3 €") == "a\\x1b[2J\\x9b1m\\x07\\x0d\tb\nprice: 3 €"
