"""Make .venv and install minicpmv into it; a second run that finds nothing changed returns at once.

    python3 scripts/bootstrap.py [--extra NAME ...] [--torch-index URL]

It needs Python's standard library and a package index, nothing else. A fresh Debian or Ubuntu has neither pip nor
ensurepip, so where they are missing pip's own wheel is fetched from the index, checked against the digest below, and
run to install itself. pip's configuration (files and PIP_* variables) is honoured throughout.

It may be interrupted at any point: the stamp that says what is installed is written last.
"""

from __future__ import annotations  # an older Python must get as far as the message that it is too old

import argparse
import base64
import configparser
import fcntl
import hashlib
import html.parser
import json
import os
import ssl
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed.json"
OLDEST_PYTHON = (3, 11)

PIP_WHEEL = "pip-26.3-py3-none-any.whl"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT_S = 60


class SetupError(Exception):
    """The set-up cannot go on; the message says what the user can do."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Make .venv and install minicpmv into it.")
    parser.add_argument("--extra", action="append", default=[], help="optional dependencies to install as well: dev")
    parser.add_argument("--torch-index", default="", help="package index that is searched besides, for torch")
    options = parser.parse_args()
    if sys.version_info < OLDEST_PYTHON:
        print(
            f"minicpmv needs Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer; {sys.executable} is "
            f"{sys.version_info[0]}.{sys.version_info[1]}. Name a newer one: make serve PYTHON=python3.12",
            file=sys.stderr,
        )
        return 1
    lock = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # `make serve` and `make test` may be started at once in one folder
    try:
        set_up(set(options.extra), options.torch_index)
    except SetupError as err:
        print(f"set-up failed: {err}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as err:
        return err.returncode  # the command has said what was wrong
    except KeyboardInterrupt:
        return 130
    return 0


def set_up(extras: set[str], torch_index: str) -> None:
    """Bring .venv to what pyproject.toml and constraints.txt ask for, with these extras and those it already has."""
    wanted = fingerprint()
    installed = read_stamp()
    complete = installed.get("fingerprint") == wanted and extras <= set(installed.get("extras", []))
    if complete and Path(venv_python()).exists():
        return
    extras |= set(installed.get("extras", []))
    interrupted = STAMP.exists() and not installed
    make_venv(anew=interrupted)  # pip may have stopped in the middle of a package
    get_pip()
    print("installing minicpmv and what it needs into .venv; the first time this takes minutes", flush=True)
    STAMP.write_text("{}", encoding="utf-8")
    project = f".[{','.join(sorted(extras))}]" if extras else "."
    arguments = ["install", "--constraint", "constraints.txt", "--editable", project]
    if torch_index:
        arguments += ["--extra-index-url", torch_index]
    run_pip(["-m", "pip"], arguments)
    STAMP.write_text(json.dumps({"fingerprint": wanted, "extras": sorted(extras)}), encoding="utf-8")


def fingerprint() -> str:
    """One text for what decides whether pip must run again: this Python, this folder, the lists, the C++ sources."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    names = (ROOT / name for name in ("pyproject.toml", "constraints.txt", "setup.py"))
    for path in (*names, *sorted((ROOT / "model" / "native" / "src").iterdir())):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_stamp() -> dict[str, Any]:
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def venv_python() -> str:
    return str(VENV / "bin" / "python")


def works(arguments: list[str]) -> bool:
    """Whether .venv's Python runs this without complaint."""
    try:
        return subprocess.run([venv_python(), *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def make_venv(*, anew: bool) -> None:
    same_python = f"import sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    if not anew and works(["-c", same_python]):
        return
    print(f"making {VENV} with {sys.executable}", flush=True)
    # --clear: what is there, if anything, comes from an interrupted run or from another Python.
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(VENV)], check=True)


def get_pip() -> None:
    if works(["-m", "pip", "--version"]):
        return
    if works(["-m", "ensurepip"]) and works(["-m", "pip", "--version"]):
        return
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / PIP_WHEEL
        wheel.write_bytes(download_pip())
        run_pip([f"{wheel}/pip"], ["install", "--quiet", "--no-index", "--ignore-installed", str(wheel)])


def run_pip(pip: list[str], arguments: list[str]) -> None:
    # No questions, no complaint about pip's own age; a `user = true` in pip's configuration has no sense in a venv.
    environment = {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0"}
    subprocess.run([venv_python(), *pip, *arguments], check=True, env=environment, cwd=ROOT)


def download_pip() -> bytes:
    """pip's wheel from the package index, checked against PIP_SHA256.

    Raises:
        SetupError: the index cannot be read, has no such wheel, or the bytes are others.
    """
    index = pip_option("index-url") or DEFAULT_INDEX
    page_url = f"{index.rstrip('/')}/pip/"
    print(f"fetching {PIP_WHEEL} from {without_login(index)}", flush=True)
    try:
        links = Links()
        links.feed(fetch(page_url).decode("utf-8", "replace"))
        href = next((href for href in links.found if Path(urllib.parse.urlsplit(href).path).name == PIP_WHEEL), None)
        if href is None:
            raise SetupError(f"{without_login(page_url)} offers no {PIP_WHEEL}; {ADVICE}")
        wheel = fetch(urllib.parse.urljoin(page_url, href))
    except (OSError, ValueError) as err:
        raise SetupError(f"cannot read {without_login(page_url)} ({err}); {ADVICE}") from err
    digest = hashlib.sha256(wheel).hexdigest()
    if digest != PIP_SHA256:
        raise SetupError(f"{PIP_WHEEL} has the digest {digest} where {PIP_SHA256} was expected; {ADVICE}")
    return wheel


ADVICE = "set PIP_INDEX_URL to your package index, or install the system's python3-venv, and start again"


class Links(html.parser.HTMLParser):
    """Collects where the links of a page lead; every package index serves such a page for each project."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def fetch(url: str) -> bytes:
    parts = urllib.parse.urlsplit(url)
    request = urllib.request.Request(without_login(url), headers={"Accept": "text/html, */*;q=0.1"})
    paths = ssl.get_default_verify_paths()
    roots = pip_option("cert") or paths.cafile
    if roots or (paths.capath and any(Path(paths.capath).iterdir())):
        context = ssl.create_default_context(cafile=roots)
        if parts.username is not None:
            login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    else:
        # A system without ca-certificates cannot check anybody. PIP_SHA256 vouches for the one file that is fetched
        # here; pip brings certificates of its own for the rest.
        context = ssl._create_unverified_context()  # noqa: S323 - see above
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as response:
        body: bytes = response.read()
    return body


def without_login(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def pip_option(name: str) -> str | None:
    """An option as pip itself would read it: the environment first, then its configuration files, the nearest last."""
    value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if value:
        return value
    home = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"), home / ".pip/pip.conf", config / "pip/pip.conf"]
    if "PIP_CONFIG_FILE" in os.environ:
        files.append(Path(os.environ["PIP_CONFIG_FILE"]))
    for file in reversed(files):
        parser = configparser.RawConfigParser()
        parser.read(file, encoding="utf-8")
        for section in ("install", "global"):
            if parser.has_option(section, name):
                return parser.get(section, name)
    return None


if __name__ == "__main__":
    sys.exit(main())
