import tomllib
from pathlib import Path

from server.version import VERSION


def test_project_file_says_the_same() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == VERSION
