"""From what `--model` says to a folder with a complete checkpoint.

    ModelError
    +-- ModelNotFound       no such folder, id or revision, or no right to see it
    +-- DownloadFailed      not in the cache, and the hub cannot be asked or broke off
    +-- IncompleteModel     files are missing; they are named
    +-- WrongContent        an official id, but not the files that this program was written for

All of them stop the start and are shown to the operator as they stand. Caches and offline mode are those of the hubs'
own libraries, with their usual variables: HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, MODELSCOPE_CACHE.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported for its users, by __getattr__
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

Source = Literal["huggingface", "modelscope"]

DEMO = "demo"

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_REQUIRED = ("config.json", "tokenizer.model", "tokenizer_config.json")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HASH_CHUNK_BYTES = 8 * 1024 * 1024
_MARKER = ".minicpmv-verified"

_TOKENIZER_SHA256 = "b046f377b2f09a90623a46611bd5d23cb76ac89ca7804a372408f37aff7b96a0"
_PINNED_SHA256: dict[str, dict[str, str]] = {
    "openbmb/minicpm-v-2": {
        "tokenizer.model": _TOKENIZER_SHA256,
        "model-00001-of-00002.safetensors": "dfe4e784b462536229e8fb8591c7e2551221c55144c5d894e66f2f2f035b648b",
        "model-00002-of-00002.safetensors": "0d088a711dc4302c682b0294f7cfd8aa7b2ec723f187644734574a83aaee65b6",
    },
    "openbmb/minicpm-v": {"tokenizer.model": _TOKENIZER_SHA256},
}
"""Content of the official checkpoints, by id in lower case: the hubs spell the owner differently."""


class ModelError(Exception):
    """The model cannot be had; the message is for the operator."""


class ModelNotFound(ModelError):
    pass


class DownloadFailed(ModelError):
    pass


class IncompleteModel(ModelError):
    pass


class WrongContent(ModelError):
    pass


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    folder: Path
    model_id: str
    """Name to show to clients when the operator gives none."""
    revision: str | None
    """The commit on Hugging Face, the revision asked for on ModelScope; None for a folder."""


def demo_folder() -> Path:
    """The checkpoint that comes with the package."""
    return Path(str(files("model.demo") / "checkpoint"))


def resolve_model(model: str, revision: str | None, source: Source) -> ResolvedModel:
    """The folder of a complete checkpoint, downloaded with a progress bar when it is not there yet.

    A copy in the hub's cache is used without asking the network. Official ids without a `revision` are held to their
    pinned content; a revision given by the operator, and a folder, are taken as they are.

    Args:
        model: "demo", a folder, or a hub id "owner/name".
        revision: commit, tag or branch of a hub id; None takes the main branch, as it was when first downloaded.
        source: which hub knows the id.

    Raises:
        ModelError: one of the tree above.
    """
    local = _local_folder(model, revision)
    if local is not None:
        _check_complete(local, missing_files(local))
        return ResolvedModel(local, local.resolve().name if model != DEMO else DEMO, None)
    fetch = _huggingface if source == "huggingface" else _modelscope
    folder, resolved = fetch(model, revision, _CHECKPOINT)
    if revision is None and model.lower() in _PINNED_SHA256:
        _verify(folder, _PINNED_SHA256[model.lower()])
    return ResolvedModel(folder, model, resolved)


def resolve_config(model: str, revision: str | None, source: Source) -> Path:
    """A folder with the model's config.json; of a hub's model no other file is fetched.

    Args and Raises: as `resolve_model`.
    """
    local = _local_folder(model, revision)
    if local is not None:
        _check_complete(local, _CONFIG_ALONE.missing(local))
        return local
    fetch = _huggingface if source == "huggingface" else _modelscope
    folder, _ = fetch(model, revision, _CONFIG_ALONE)
    return folder


def _local_folder(model: str, revision: str | None) -> Path | None:
    """The folder that is meant; None where it is a hub id."""
    local = demo_folder() if model == DEMO else Path(model).expanduser()
    if local.is_dir():
        if revision is not None:
            raise ModelError(f"a revision ({revision}) belongs to a hub id, and {model} is a folder")
        return local
    if not _HUB_ID.fullmatch(model):
        raise ModelNotFound(
            f"the model {model!r} is no folder here, no hub id of the form owner/name, and not {DEMO!r}"
        )
    return None


def missing_files(folder: Path) -> list[str]:
    """Names of the files that a checkpoint needs and the folder lacks; a damaged index counts as missing."""
    needed = [*_REQUIRED]
    if (folder / _INDEX).is_file():
        try:
            weight_map = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
            needed += sorted({str(name) for name in weight_map.values()})
        except (ValueError, KeyError, TypeError, AttributeError):
            return [f"{_INDEX} (damaged)"]
    else:
        needed.append(_SINGLE)
    return _absent(folder, needed)


def _absent(folder: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


@dataclass(frozen=True, slots=True)
class _Files:
    """Which part of a repository is wanted."""

    patterns: Sequence[str]
    missing: Callable[[Path], list[str]]
    """What a folder lacks of it."""


# Weights as safetensors only, and no code: nothing else of a repository is ever fetched.
_CHECKPOINT = _Files([*_REQUIRED, "generation_config.json", _INDEX, "*.safetensors"], missing_files)
_CONFIG_ALONE = _Files(["config.json"], lambda folder: _absent(folder, ["config.json"]))


def _check_complete(folder: Path, missing: list[str]) -> None:
    if missing:
        raise IncompleteModel(f"{folder} is not a complete checkpoint; missing: {', '.join(missing)}")


def _huggingface(model: str, revision: str | None, files: _Files) -> tuple[Path, str]:
    """The snapshot's folder and its commit."""

    def fetch(*, local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=[*files.patterns], local_files_only=local_files_only
            )
        )

    try:
        folder = _cached_or_downloaded(model, fetch, files, absent=LocalEntryNotFoundError)
    except (RepositoryNotFoundError, HFValidationError) as err:
        raise ModelNotFound(
            f"Hugging Face has no model {model}, or shows it only to others; for a private or gated one set HF_TOKEN"
        ) from err
    except RevisionNotFoundError as err:
        raise ModelNotFound(f"{model} has no revision {revision!r}") from err
    except LocalEntryNotFoundError as err:
        raise DownloadFailed(
            f"{model} is not in the cache and Hugging Face cannot be reached; give a folder to --model instead, or "
            f"check the network, HF_HUB_OFFLINE and HF_ENDPOINT"
        ) from err
    except (httpx.HTTPError, OSError) as err:
        raise DownloadFailed(f"the download of {model} broke off, start again to go on with it: {err}") from err
    return folder, folder.name


def _modelscope(model: str, revision: str | None, files: _Files) -> tuple[Path, str]:
    """The snapshot's folder and its revision."""
    try:
        from modelscope.hub.errors import HubError
        from modelscope.hub.snapshot_download import snapshot_download as modelscope_download
    except ImportError as err:
        raise DownloadFailed("downloads from ModelScope need its package: pip install 'minicpmv[modelscope]'") from err

    def fetch(*, local_files_only: bool) -> Path:
        return Path(
            modelscope_download(
                model, revision=revision, allow_patterns=[*files.patterns], local_files_only=local_files_only
            )
        )

    try:
        # The library answers an empty cache with a bare ValueError.
        folder = _cached_or_downloaded(model, fetch, files, absent=ValueError)
    except (HubError, OSError, ValueError) as err:
        raise DownloadFailed(f"ModelScope did not deliver {model}: {err}") from err
    return folder, revision or "master"


def _cached_or_downloaded(model: str, fetch: Callable[..., Path], files: _Files, *, absent: type[Exception]) -> Path:
    """The cached copy if it is complete, else a downloaded one.

    Args:
        fetch: downloads, or with `local_files_only` looks into the cache.
        absent: what `fetch` raises when the cache lacks the model.
    """
    try:
        folder = fetch(local_files_only=True)
        if not files.missing(folder):
            return folder
    except absent:
        pass
    logger.info("downloading %s", model)
    folder = fetch(local_files_only=False)
    _check_complete(folder, files.missing(folder))
    return folder


def _verify(folder: Path, pinned: dict[str, str]) -> None:
    """Hash the pinned files once for each copy; a marker beside them remembers it.

    Raises:
        WrongContent: a file is missing or is not the pinned one.
    """
    marker = folder / _MARKER
    verified = "\n".join(f"{sha256}  {name}" for name, sha256 in sorted(pinned.items())) + "\n"
    if marker.is_file() and marker.read_text(encoding="utf-8") == verified:
        return
    for name, sha256 in pinned.items():
        # The hub's cache holds links: it is the file behind them that has to go if it is damaged.
        path = (folder / name).resolve()
        if not path.is_file():
            raise WrongContent(f"the official files include {name}, but {folder} has none; try --revision")
        if (found := _sha256(path, name)) != sha256:
            raise WrongContent(
                f"{name} is not the official file: its sha256 is {found}, expected {sha256}. Delete {path} and start "
                f"again to download it anew; if the owner has published new files, accept them with --revision"
            )
    try:
        marker.write_text(verified, encoding="utf-8")
    except OSError as err:
        # A cache that cannot be written is hashed at every start.
        logger.info("cannot remember that %s was verified: %s", folder, err.strerror)


def _sha256(path: Path, name: str) -> str:
    digest = hashlib.sha256()
    columns = (TextColumn("verifying {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, path.open("rb") as file:
        task = progress.add_task(name, total=path.stat().st_size)
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            progress.advance(task, len(chunk))
    return digest.hexdigest()
