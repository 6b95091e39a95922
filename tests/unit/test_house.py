"""What documents say about the code is true, and the code keeps the rules of the house."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from scripts import metrics_table
from scripts.settings_table import PAGE, page
from server.settings import Settings
from server.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "deploy", "docs", "model", "scripts", "server", "tests")
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(path for folder in ("benchmarks", "deploy", "docs") for path in sorted((ROOT / folder).rglob("*.md"))),
]
CODE = [path for folder in ("model", "server", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def normal_name(requirement: str) -> str:
    """The package's name alone, as indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]).lower()


def test_the_changelog_begins_with_the_version_of_the_package():
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"] == VERSION


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_make_command_in_a_document_exists(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) - targets == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_link_in_a_document_leads_to_a_file(document):
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_module_that_a_document_names_exists(document):
    named = re.findall(r"`((?:\w+/)+\w+\.py)`", document.read_text(encoding="utf-8"))
    assert [
        path for path in named if not any((ROOT / start / path).exists() for start in ("", "model", "server"))
    ] == []


@pytest.mark.parametrize("folder", [ROOT / "docs", ROOT / "docs" / "decisions"], ids=relative)
def test_every_page_is_in_its_folders_index(folder):
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in folder.glob("*.md") if path.name != "README.md" and path.name not in index] == []


def test_every_flag_in_the_readme_is_a_setting():
    flags = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?:minicpmv serve|make serve ARGS=|docker run .* serve)(.*)", readme)
    assert commands
    assert {flag for command in commands for flag in re.findall(r"--[a-z-]+", command)} - flags == set()


def test_the_page_of_settings_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_the_page_of_metrics_is_current():
    assert metrics_table.PAGE.read_text(encoding="utf-8") == metrics_table.page(), "run `make docs`"


def test_every_dependency_is_pinned_and_has_its_line_in_the_documents():
    pinned = {normal_name(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()}
    run_time = {normal_name(dependency) for dependency in PROJECT["dependencies"]}
    optional = {normal_name(name) for group in PROJECT["optional-dependencies"].values() for name in group}
    assert (run_time | optional) - pinned == set()
    table = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| ([a-z0-9-]+) \|", table, re.MULTILINE)) >= run_time


def test_no_file_is_of_a_kind_that_does_not_belong_here():
    # Weights are safetensors: the other formats run code when they are loaded. A module called utils has no subject.
    suffixes = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".so"}
    names = {"utils.py", "helpers.py", "common.py", "misc.py"}
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    files = [path for path in files if not path.name.startswith("_kernels.")]  # built in place, and ignored by git
    assert [relative(path) for path in files if path.suffix in suffixes or path.name in names] == []


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_modules_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60] == []
