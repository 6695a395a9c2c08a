"""``aif publish item``: README and help say that the whole item is replaced, and the example names all of it."""

from __future__ import annotations

import json
import re
import shlex
from itertools import islice
from pathlib import Path

import pytest

from aif_stream.cli.publish import item_line, publish
from aif_stream.runtime.catalogue import SEED
from aif_stream.training.synthetic import Synthetic

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def test_readme_example_sends_a_whole_item_of_the_demo() -> None:
    found = re.search(r"^\.venv/bin/aif publish item ((?:.*\\\n)*.*)$", README, re.M)
    assert found is not None
    item_id, *fields = shlex.split(found[1].replace("\\\n", ""))
    sent = json.loads(item_line(item_id, tuple(fields)))
    stored = next(islice(Synthetic(10, 5000, SEED).items(), int(item_id) - 1, None))
    assert sent["attributes"].pop("price") != stored["attributes"].pop("price")
    assert sent == stored | {"item_id": item_id}


@pytest.mark.parametrize("verb", ["item", "items", "users"])
def test_help_says_that_what_is_stored_is_replaced(verb: str) -> None:
    text = " ".join((publish.commands[verb].help or "").split())
    assert "replaces the stored" in text
    assert "not name" in text
    assert "removed" in text
