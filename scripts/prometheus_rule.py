"""Write deploy/monitoring/prometheusrule.yaml, the rules for the Prometheus operator, from rules.yaml beside it.

python scripts/prometheus_rule.py [ADDRESS]

ADDRESS comes before the path in each runbook_url, so that alerts link to a copy of docs/ that readers can open:
https://git.example.com/minicpmv/blob/main/
"""

import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "monitoring"
RULES = FOLDER / "rules.yaml"
PAGE = FOLDER / "prometheusrule.yaml"

HEAD = "# Written by `make monitoring` from rules.yaml: change it there.\n"


def page(runbooks: str = "") -> str:
    """The whole text of prometheusrule.yaml; `runbooks` is the address that goes before each path."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    for group in groups:
        for rule in group["rules"]:
            if "annotations" in rule:
                rule["annotations"]["runbook_url"] = runbooks + rule["annotations"]["runbook_url"]
    manifest: dict[str, Any] = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "minicpmv"},
        "spec": {"groups": groups},
    }
    return HEAD + yaml.safe_dump(manifest, sort_keys=False, width=1000, allow_unicode=True)


def main() -> None:
    runbooks = sys.argv[1] if len(sys.argv) > 1 else ""
    PAGE.write_text(page(runbooks), encoding="utf-8")


if __name__ == "__main__":
    main()
