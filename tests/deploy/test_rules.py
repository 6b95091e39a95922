"""The alert rules: each fires when it should and not before, and leads to a passage that says what to do."""

import re

import pytest
import yaml

from scripts import prometheus_rule
from tests.support.tools import ROOT, run_tool

FOLDER = ROOT / "deploy" / "monitoring"
GROUPS = yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]


def anchors(page: str) -> set[str]:
    """The headings of a page as GitHub and GitLab name them in links."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_promtool_accepts_the_rules():
    run_tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", str(FOLDER / "rules.yaml"))


def test_every_alert_fires_when_it_should():
    run_tool("promtool", "test", "rules", str(FOLDER / "rules_test.yaml"))


def test_every_alert_has_a_case_that_fires_it():
    tests = yaml.safe_load((FOLDER / "rules_test.yaml").read_text(encoding="utf-8"))["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(alert):
    assert alert["labels"]["severity"] in ("warning", "critical")
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == alert["alert"].lower()
    assert anchor in anchors((ROOT / path).read_text(encoding="utf-8"))


def test_the_operators_manifest_is_the_same_rules():
    written = prometheus_rule.PAGE.read_text(encoding="utf-8")
    address = re.search(r"runbook_url: (.*?)docs/", written)
    assert address is not None
    assert written == prometheus_rule.page(address[1]), "run `make monitoring`"


def test_an_address_comes_before_each_runbook():
    written = prometheus_rule.page("https://git.example.com/minicpmv/")
    assert written.count("runbook_url: https://git.example.com/minicpmv/docs/operations.md#") == len(ALERTS)
