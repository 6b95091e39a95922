"""What must be true of a commit that is released, besides that all tests pass.

python -m scripts.release_check
"""

import re
import subprocess
import sys
from pathlib import Path

from server.version import VERSION

ROOT = Path(__file__).resolve().parent.parent


def faults(changelog: str, changed: str, tags: str) -> list[str]:
    """What is in the way of a release; empty when nothing is.

    Args:
        changelog: the text of CHANGELOG.md.
        changed: what `git status --porcelain` says.
        tags: what `git tag` says.
    """
    found = []
    newest = re.search(r"^## (\S+) \((.+)\)$", changelog, re.MULTILINE)
    if newest is None or newest[1] != VERSION:
        found.append(f"CHANGELOG.md does not begin with {VERSION}")
    elif re.fullmatch(r"\d{4}-\d{2}-\d{2}", newest[2]) is None:
        found.append(f"CHANGELOG.md calls {VERSION} {newest[2]!r}, not by the day of its release")
    if changed.strip():
        found.append("there are changes that are not committed")
    if f"v{VERSION}" in tags.split():
        found.append(f"there is a tag v{VERSION} already")
    return found


def main() -> int:
    found = faults((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), _git("status", "--porcelain"), _git("tag"))
    for fault in found:
        print(f"not ready: {fault}", file=sys.stderr)
    return 1 if found else 0


def _git(*arguments: str) -> str:
    done = subprocess.run(  # the developer's own git
        ["git", *arguments],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
