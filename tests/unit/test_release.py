"""What is released says what is in it, and nothing is released by accident."""

import json

import pytest

from scripts import sbom
from scripts.release_check import faults
from server.version import VERSION

READY = f"# Changelog\n\n## {VERSION} (2026-12-01)\n\n- Something.\n"


def test_a_clean_commit_with_a_dated_changelog_is_ready():
    assert faults(READY, changed="", tags="v0.0.9\n") == []


@pytest.mark.parametrize(
    ("changelog", "changed", "tags", "words"),
    [
        (READY.replace("2026-12-01", "unreleased"), "", "", "unreleased"),
        (READY.replace(VERSION, "9.9.9"), "", "", "does not begin"),
        ("# Changelog\n", "", "", "does not begin"),
        (READY, " M README.md\n", "", "not committed"),
        (READY, "", f"v{VERSION}\n", "already"),
    ],
)
def test_what_is_in_the_way(changelog, changed, tags, words):
    (fault,) = faults(changelog, changed, tags)
    assert words in fault


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_bill_names_every_pinned_package_once(variant):
    document = sbom.bill(variant)
    pinned = sbom.packages(variant)
    assert {one["name"]: one["version"] for one in document["components"]} == {
        name: version for name, (version, _) in pinned.items()
    }
    assert len({one["bom-ref"] for one in document["components"]}) == len(pinned)
    assert document["metadata"]["component"]["version"] == VERSION
    json.dumps(document)


def test_every_licence_that_can_be_read_here_is_on_the_list():
    # What the tests need not have installed, GPU's packages among it, has none here.
    licences = {name: sbom.check_licence(name) for name in sbom.packages("cpu")}
    assert licences["pydantic"] == "MIT"
    assert sum(licence is not None for licence in licences.values()) > 30


def test_a_licence_off_the_list_stops_a_release(monkeypatch):
    monkeypatch.setattr(sbom, "licence", lambda name: "MIT AND GPL-3.0-only")
    with pytest.raises(sbom.UnknownLicence, match="GPL"):
        sbom.check_licence("something")
