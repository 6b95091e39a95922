"""`minicpmv plan`: the tables, without torch, weights or a GPU."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from server.__main__ import main
from tests.support.golden import DATA

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A folder with the official config.json and nothing else."""
    (tmp_path / "config.json").write_bytes((DATA / "config-official.json").read_bytes())
    return tmp_path


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def rows(printed: str) -> dict[tuple[str, ...], list[str]]:
    """The cells of each row of the tables, by the first two that are formats."""
    table = [[cell.strip() for cell in line.strip(" │").split("│")] for line in printed.splitlines() if "│" in line]
    return {tuple(cells[:2]): cells[2:] for cells in table if len(cells) > 2}


def test_every_pair_on_a_card_of_8_gib(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(official), "--memory", "8GiB"]) == 0
    printed = capsys.readouterr().out
    found = rows(printed)
    assert found["fp32", "int8"] == ["12.80", "14.11", "does not fit"]
    weights, _, _, tokens, requests = found["int8", "int8"]
    assert (weights, requests) == ("3.23", "22")
    assert int(tokens.replace(",", "")) // 960 == 22
    assert "--weights int8 --kv int8, computing in bf16" in printed
    assert "KV cache in int8" in printed


def test_card_of_another_size(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(official), "--device-memory", "24GiB", "--memory", "0.9"]) == 0
    printed = capsys.readouterr().out
    assert "a GPU of 24.00 GiB, --memory: 21.60 GiB" in printed
    assert "--weights bf16 --kv bf16" in printed


def test_host(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(official), "--device", "cpu", "--device-memory", "32GiB"]) == 0
    printed = capsys.readouterr().out
    assert "a CPU of 32.00 GiB, --memory: what is free" in printed
    assert float(rows(printed)["bf16", "bf16"][2]) == pytest.approx(4, abs=0.01)


def test_chosen_formats_alone(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(official), "--weights", "int4", "--kv", "fp8"]) == 0
    printed = capsys.readouterr().out
    assert [key for key in rows(printed) if key[1] in ("bf16", "int8", "fp8")] == [("int4", "fp8")]


def test_what_fits_nowhere_is_refused(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(official), "--memory", "2GiB"]) == 1
    assert "the smallest, --weights int4 --kv int8, needs" in capsys.readouterr().err


def test_more_than_the_device_has(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(official), "--memory", "9GiB", "--device-memory", "8GiB"]) == 1
    assert "--memory 9.00 GiB is more than there is" in capsys.readouterr().err


def test_folder_without_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": "many"}))
    assert main(["plan", "--model", str(tmp_path)]) == 1
    assert "hidden_size" in capsys.readouterr().err


def test_no_torch_is_loaded(official: Path) -> None:
    code = (
        "import sys; from server.__main__ import main; status = main(sys.argv[1:]); sys.exit(status or 'torch' in "
        "sys.modules)"
    )
    command = [sys.executable, "-c", code, "plan", "--model", str(official)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


SIZING = re.findall(
    r"^\| [^|]*?(\d+) (GiB|GB) \| `([^`]+)` \| (\w+), KV (\w+) \| ([\d,]+) \| (\d+) \| (\d+) \|$",
    (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize("row", SIZING, ids=lambda row: f"{row[0]}{row[1]}")
def test_the_operating_guides_table_is_the_plans(
    official: Path, capsys: pytest.CaptureFixture[str], row: tuple[str, ...]
) -> None:
    size, _, memory, weights, kv, tokens, requests, requests_int8 = row
    assert main(["plan", "--model", str(official), "--device-memory", f"{size}GiB", "--memory", memory]) == 0
    printed = capsys.readouterr().out
    assert f"--weights {weights} --kv {kv}" in printed
    assert rows(printed)[weights, kv][-2:] == [tokens, requests]
    assert rows(printed)["int8", "int8"][-1] == requests_int8


def test_the_operating_guide_has_that_table() -> None:
    assert len(SIZING) == 7
