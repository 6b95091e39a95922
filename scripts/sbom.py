"""Write the bill of materials of an image, in CycloneDX's form, from its pins; and hold the licences against a list.

python -m scripts.sbom cpu dist/minicpmv-cpu.cdx.json
"""

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any

from server.version import VERSION

LOCKS = Path(__file__).resolve().parent.parent / "deploy" / "image"

ALLOWED = re.compile(
    r"MIT|MIT-CMU|BSD|BSD-[23]-Clause|0BSD|BSL-1\.0|Apache-2\.0|Apache-2\.0 WITH LLVM-exception|ISC|PSF-2\.0|"
    r"CNRI-Python|Zlib|CC0-1\.0|MPL-2\.0|LicenseRef-NVIDIA"
)
"""What may be in an image. MPL-2.0 asks for changes to its own files alone. NVIDIA's libraries have terms of their own,
which whoever passes on a cuda image must keep."""

NVIDIA = re.compile(r"nvidia-|cuda-(?!pathfinder)")
"""NVIDIA's proprietary packages, which are not installed where there is no GPU."""

FREE_WORDS = {
    r"(OSI Approved :: )?(The )?MIT( License)?": "MIT",
    r"(OSI Approved :: )?Apache(-2\.0|,? ?(License)?,? ?(Version )?2\.0)?( Software License| License)?": "Apache-2.0",
    r"(OSI Approved :: )?(3-Clause )?BSD( License)?": "BSD",
    r"(OSI Approved :: )?(Mozilla Public License 2\.0 \(MPL 2\.0\)|MPL-2\.0)": "MPL-2.0",
    r"(OSI Approved :: )?ISC License( \(ISCL\))?": "ISC",
}
"""How packages from before licence expressions write theirs."""


class UnknownLicence(Exception):
    """A package says nothing of its licence, or something that is not in the list."""


def packages(variant: str) -> dict[str, tuple[str, list[str]]]:
    """Version and sha256 of its files, by package, of the cpu or the cuda image."""
    text = (LOCKS / f"{variant}.txt").read_text(encoding="utf-8")
    found = {}
    for block in re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]:
        name, version = block.split(maxsplit=1)[0].split("==")
        found[name] = (version, re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
    return found


def licence(name: str) -> str | None:
    """As an SPDX expression or one of its terms; None for a package that is not installed here."""
    if NVIDIA.match(name):
        return "LicenseRef-NVIDIA"
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    fields: dict[str, Any] = metadata.json
    if expression := fields.get("license_expression"):
        return str(expression)
    classifiers = [one.removeprefix("License :: ") for one in fields.get("classifier", ()) if one.startswith("License")]
    written: list[str] = [str(fields.get("license", "")), *classifiers]
    for words in written:
        for pattern, term in FREE_WORDS.items():
            if re.fullmatch(pattern, words):
                return term
        if words and all(ALLOWED.fullmatch(part) for part in _terms(words)):
            return words
    raise UnknownLicence(f"{name}: {fields.get('license') or classifiers or 'says nothing'}")


def check_licence(name: str) -> str | None:
    """The package's licence.

    Raises:
        UnknownLicence: one of its terms is not in the list.
    """
    expression = licence(name)
    if expression is not None and not all(ALLOWED.fullmatch(term) for term in _terms(expression)):
        raise UnknownLicence(f"{name}: {expression}")
    return expression


def _terms(expression: str) -> list[str]:
    return [term for term in re.split(r" AND | OR |[()]", expression) if term.strip()]


def bill(variant: str) -> dict[str, Any]:
    """The document, the same for the same pins: no time, no serial number."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "minicpmv",
                "name": f"minicpmv-{variant}",
                "version": VERSION,
                "licenses": [{"expression": "Apache-2.0"}],
            }
        },
        "components": [_component(name, *pinned) for name, pinned in sorted(packages(variant).items())],
    }


def _component(name: str, version: str, hashes: list[str]) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    component: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if expression := check_licence(name):
        # "BSD" alone, without the number of its clauses, is a name and no expression.
        component["licenses"] = (
            [{"license": {"name": expression}}] if expression == "BSD" else [{"expression": expression}]
        )
    component["externalReferences"] = [
        {
            "type": "distribution",
            "url": f"https://pypi.org/project/{name}/{version.partition('+')[0]}/",
            "comment": "any of its files; the image has one of them",
            "hashes": [{"alg": "SHA-256", "content": content} for content in hashes],
        }
    ]
    return component


def main() -> int:
    variant, path = sys.argv[1], Path(sys.argv[2])
    try:
        document = bill(variant)
    except UnknownLicence as err:
        print(f"licence to be looked at: {err}", file=sys.stderr)
        return 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    unknown = [one["name"] for one in document["components"] if "licenses" not in one]
    print(f"{path}: {len(document['components'])} packages")
    if unknown:
        print(f"not installed here, so without a licence: {', '.join(unknown)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
