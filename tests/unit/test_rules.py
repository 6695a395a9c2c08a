"""Alerts, their tests, their runbook and the dashboards belong together."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.prometheus import DEPLOY, rules, tool_or_skip

PROMETHEUS = DEPLOY / "prometheus"
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
OPERATIONS = (DEPLOY.parent / "docs" / "operations.md").read_text()


def promtool(*words: str) -> None:
    command = (tool_or_skip("promtool"), *words)
    done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_configuration_and_rules() -> None:
    promtool("check", "config", "prometheus.yml")


def test_each_rule_fires_when_it_should_and_is_silent_when_all_is_well() -> None:
    promtool("test", "rules", "rules_test.yml")


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = [
        case
        for test in yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == set(ALERTS)
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_who_is_to_come_what_is_so_and_where_the_mend_stands(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert set(alert["annotations"]) == {"summary", "runbook"}
    assert alert["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    entry = re.search(rf"^#### {name}\n\n(.+?)(?=\n#|\Z)", OPERATIONS, re.M | re.S)
    assert entry is not None, "docs/operations.md has no entry"
    assert len(entry[1].split()) > 15, "an entry says what to look at and what to do"


def test_every_entry_of_the_runbook_is_an_alert() -> None:
    assert set(re.findall(r"^#### (Aif\w+)$", OPERATIONS, re.M)) == set(ALERTS)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_asks_the_provisioned_source_and_no_panel_is_without_title_and_query(path: Path) -> None:
    board = json.loads(path.read_text())
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert board["uid"] == path.stem
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers) > 10
    for panel in board["panels"]:
        assert panel["title"]
        assert panel["targets"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {source["uid"]}
