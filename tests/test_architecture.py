"""The house's own rules that no linter knows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "aif_stream").rglob("*.py"))
# Files around 300 lines; past this a file is asked by which noun to split.
MOST_LINES = 400


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_at_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_settings_is_the_only_reader_of_the_environment() -> None:
    readers = {path for path in SOURCES if re.search(r"\bos\.(environ|getenv)\b", path.read_text())}
    assert readers == {ROOT / "aif_stream/settings.py"}


def test_the_command_line_starts_without_torch_or_faust() -> None:
    code = "import sys, aif_stream.cli; print({'torch', 'faust', 'aiokafka', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_every_verb_exists_and_has_help() -> None:
    from aif_stream.cli import VERBS, cli

    for verb in VERBS:
        command = cli.get_command(None, verb)  # type: ignore[arg-type]
        assert command is not None, verb
        assert command.help, verb


def test_every_setting_has_a_meaning_and_documents_name_only_settings_that_exist() -> None:
    from aif_stream.settings import load, variable

    _, origins = load(None, {})
    assert all(origin.help for origin in origins)
    known = {variable(origin.name) for origin in origins}
    others = {"AIF_REQUIRE_KAFKA", "AIF_TEST_KAFKA_HOME", "AIF_CPU_CAPABILITY"}  # for tests alone
    for document in [ROOT / "README.md", ROOT / "docker-compose.yml", *(ROOT / "docs").rglob("*.md")]:
        named = set(re.findall(r"\bAIF_[A-Z_0-9]+\b", document.read_text()))
        assert named <= known | others, document
