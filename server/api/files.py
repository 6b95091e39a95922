"""`/v1/files`: a picture is sent once and asked about many times. Off unless `--file-memory` gives it room."""

import asyncio
import math
import time
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response

from server.api.caller import owner
from server.api.connection import read_body
from server.api.errors import json_response
from server.api.file_store import (
    NOT_ENABLED,
    FileStore,
    StorageFull,
    StoredFile,
    StoredPictures,
    file_not_found,
)
from server.api.form import FormPart, boundary_of, read_form
from server.api.images import image_limits
from server.api.intake import Intake
from server.errors import InvalidImage, InvalidRequest, NotFound, TooManyRequests
from server.image import inspect_image
from server.settings import Settings

_FORM_BYTES = 16 * 1024
"""What a form may have besides its picture."""
_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
_PURPOSES = ("user_data", "vision")
_MAX_WAIT_S = 60
"""Retry-After at most; clients give up on longer ones."""


def files_router(intake: Intake, store: FileStore) -> APIRouter:
    router = APIRouter()
    settings = intake.settings
    stored = StoredPictures(store)

    async def is_on() -> None:
        if not store.is_on:
            raise NotFound(NOT_ENABLED)

    @router.post("/v1/files", dependencies=[Depends(is_on), Depends(intake.permit)])
    async def create_file(http: Request) -> Response:
        boundary = boundary_of(http.headers.get("content-type", ""))
        max_bytes = settings.max_image_bytes + _FORM_BYTES
        body = await read_body(http, max_bytes=max_bytes, timeout_s=settings.client_timeout_s)
        return json_response(_shown(await asyncio.to_thread(_accept, bytes(body), boundary, settings, store)))

    @router.get("/v1/files", dependencies=[Depends(is_on)])
    async def list_files(http: Request) -> Response:
        return json_response(_page(store.list(owner(), time.time()), dict(http.query_params)))

    @router.get("/v1/files/{file_id}", dependencies=[Depends(is_on)])
    async def retrieve_file(file_id: str) -> Response:
        return json_response(_shown(stored.file(file_id, param="file_id")))

    @router.get("/v1/files/{file_id}/content", dependencies=[Depends(is_on)])
    async def file_content(file_id: str) -> Response:
        file = stored.file(file_id, param="file_id")
        # Never shown by a browser as what it may look like.
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            "X-Content-Type-Options": "nosniff",
        }
        return Response(file.image.data, media_type="application/octet-stream", headers=headers)

    @router.delete("/v1/files/{file_id}", dependencies=[Depends(is_on)])
    async def delete_file(file_id: str) -> Response:
        if not store.delete(owner(), file_id, time.time()):
            raise file_not_found(file_id, "file_id")
        return json_response({"id": file_id, "object": "file", "deleted": True})

    return router


def _accept(body: bytes, boundary: bytes, settings: Settings, store: FileStore) -> StoredFile:
    """Takes milliseconds a megabyte: run it off the event loop."""
    form = read_form(body, boundary)
    for name in form:
        if name not in _FIELDS:
            raise InvalidRequest(f"{name} is not a known parameter", param=name, code="unknown_parameter")
    purpose = _text(form, "purpose")
    if purpose not in _PURPOSES:
        raise InvalidRequest("purpose must be 'user_data' or 'vision'", param="purpose")
    lifetime_s = _lifetime(form, settings.file_ttl_s)
    if "file" not in form:
        raise InvalidRequest("file: field required", param="file", code="missing_required_parameter")
    try:
        image = inspect_image(form["file"].data, image_limits(settings))
    except InvalidImage as err:
        raise err.at("file") from err
    filename = (form["file"].filename or "picture")[:255]
    whose, now_s = owner(), time.time()

    def make(file_id: str) -> StoredFile:
        created_s = int(now_s)
        return StoredFile(file_id, whose, filename, purpose, image, created_s, created_s + lifetime_s)

    try:
        return store.add(make, now_s)
    except StorageFull as err:
        raise TooManyRequests(
            "there is no room for another file until one expires or is deleted",
            param="file",
            code="storage_full",
            retry_after_s=min(max(math.ceil(err.wait_s), 1), _MAX_WAIT_S),
        ) from err


def _text(form: dict[str, FormPart], name: str) -> str:
    if name not in form:
        raise InvalidRequest(f"{name}: field required", param=name, code="missing_required_parameter")
    return form[name].data[:100].decode(errors="replace")


def _lifetime(form: dict[str, FormPart], max_s: int) -> int:
    """Seconds that the file is kept: what is asked for, or the most."""
    anchor, seconds = "expires_after[anchor]", "expires_after[seconds]"
    if anchor not in form and seconds not in form:
        return max_s
    if _text(form, anchor) != "created_at":
        raise InvalidRequest(f"{anchor} must be 'created_at'", param=anchor)
    asked = _text(form, seconds)
    if not (asked.isascii() and asked.isdecimal() and int(asked) > 0):
        raise InvalidRequest(f"{seconds} must be a number of seconds", param=seconds)
    if int(asked) > max_s:
        raise InvalidRequest(
            f"{seconds} is {asked}; files are kept for {max_s} seconds at most", param=seconds, code="limit_exceeded"
        )
    return int(asked)


def _page(files: list[StoredFile], query: dict[str, str]) -> dict[str, Any]:
    """A page of OpenAI's list: the newest first, unless the query says otherwise."""
    for name in query:
        if name not in ("after", "limit", "order", "purpose"):
            raise InvalidRequest(f"{name} is not a known parameter", param=name, code="unknown_parameter")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be 'asc' or 'desc'", param="order")
    limit = query.get("limit", "10000")
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit) <= 10_000):
        raise InvalidRequest("limit must be between 1 and 10000", param="limit")
    if order == "desc":
        files = files[::-1]
    if "after" in query:
        at = next((at for at, file in enumerate(files) if file.file_id == query["after"]), None)
        if at is None:
            raise file_not_found(query["after"], "after")
        files = files[at + 1 :]
    wanted = [file for file in files if query.get("purpose", file.purpose) == file.purpose]
    page = wanted[: int(limit)]
    return {
        "object": "list",
        "data": [_shown(file) for file in page],
        "first_id": page[0].file_id if page else None,
        "last_id": page[-1].file_id if page else None,
        "has_more": len(wanted) > len(page),
    }


def _shown(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": len(file.image.data),
        "created_at": file.created_s,
        "expires_at": file.expires_s,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        # Not OpenAI's.
        "width": file.image.width,
        "height": file.image.height,
    }
