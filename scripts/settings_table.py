"""Write docs/settings.md from server/settings.py.

python scripts/settings_table.py
"""

from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from server.settings import ENV_PREFIX, Settings, parse_bytes

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

HEAD = f"""# Settings

<!-- Written by `make docs` from server/settings.py: change it there. -->

Flags of `minicpmv serve`. Each is also an environment variable (`--max-images 4` is `{ENV_PREFIX}MAX_IMAGES=4`), a key
of the YAML file that `--config` names (`max_images: 4`), and a file of that name in the folder that
`{ENV_PREFIX}SECRETS_DIR` names. A flag counts more than the environment, that more than the YAML file, that more than
a secret file. A wrong value or an unknown name stops the start, with the setting's name. Sizes are written as
`512MiB`, `8GiB`, `1.5GB` or a number of bytes.

| flag | default | values | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole text of docs/settings.md."""
    return HEAD + "".join(f"{row(name, field)}\n" for name, field in Settings.model_fields.items())


def row(name: str, field: FieldInfo) -> str:
    flag = name.replace("_", "-")
    meaning = (field.description or "").replace("|", "\\|")
    return f"| `--{flag}` | {default(field)} | {values(field)} | {meaning} |"


def default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{size(value) if is_size(field) else value}`"


def values(field: FieldInfo) -> str:
    """What may be written: the words, or the range of a number."""
    words = words_of(field.annotation)
    if words:
        return ", ".join(f"`{word}`" for word in words)
    bounds = []
    for constraint in field.metadata:
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            limit = getattr(constraint, attribute, None)
            if limit is not None:
                bounds.append(f"{sign} {size(limit) if is_size(field) else limit}")
    return ", ".join(bounds)


def words_of(annotation: object) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def is_size(field: FieldInfo) -> bool:
    """Whether the setting is written as a size; `Bytes | None` keeps the mark on the first of its parts."""
    parts = [field, *(FieldInfo.from_annotation(part) for part in get_args(field.annotation))]
    return any(getattr(mark, "func", None) is parse_bytes for part in parts for mark in part.metadata)


def size(num_bytes: int) -> str:
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes % factor == 0:
            return f"{num_bytes // factor}{unit}"
    return str(num_bytes)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
