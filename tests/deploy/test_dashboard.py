"""The Grafana dashboard: Prometheus can read its queries, and they name what the server really exposes."""

import json
import re

import pytest
import yaml

from scripts import dashboard
from tests.support.server_process import ServerProcess
from tests.support.tools import ROOT, run_tool

RULES = ROOT / "deploy" / "monitoring" / "rules.yaml"
PANELS = [panel for panel in json.loads(dashboard.page())["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """Names of all samples that a running server can have on its page, after one request."""
    server = ServerProcess("--device", "cpu", "--num-threads", "1", "--kv-cache-memory", "64MiB")
    try:
        server.client().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=2
        )
        page = server.get("/metrics").text
    finally:
        server.stop()
    # Not the samples alone: a counter by reason has none before its first event.
    families = re.findall(r"^# TYPE (\S+) (\w+)$", page, re.MULTILINE)
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + suffix for name, kind in families for suffix in suffixes.get(kind, ("",))}


def names(query: str) -> set[str]:
    return set(re.findall(r"\b(?:minicpmv|process)_\w+", re.sub(r"job:\w+:\w+", "", query)))


def test_the_file_is_current():
    assert dashboard.PAGE.read_text(encoding="utf-8") == dashboard.page(), "run `make monitoring`"


def test_prometheus_can_read_every_query(tmp_path):
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(QUERIES)
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    run_tool("promtool", "check", "rules", str(file))


def test_queries_name_only_what_the_server_exposes(exposed):
    assert {name for query in QUERIES for name in names(query)} - exposed == set()


def test_rules_name_only_what_the_server_exposes(exposed):
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    named = {name for group in groups for rule in group["rules"] for name in names(rule["expr"])}
    assert len(named) > 10
    assert named - exposed == set()


def test_every_query_is_narrowed_to_what_the_reader_has_chosen():
    assert all(query.count('job=~"$job", instance=~"$instance"') == len(re.findall(r"\{", query)) for query in QUERIES)


def test_panels_have_numbers_of_their_own_and_do_not_overlap():
    numbers = [panel["id"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers)
    cells = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in PANELS
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < dashboard.COLUMNS
