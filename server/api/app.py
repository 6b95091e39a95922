"""The application: middleware, error handling and routes, put together. Everything it works with is an argument."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from server.api.admission import Admission
from server.api.auth import ApiKeys, KeyRing
from server.api.chat import chat_router
from server.api.completions import completions_router
from server.api.context import RequestContext
from server.api.errors import on_http_exception
from server.api.health import health_router
from server.api.intake import Intake
from server.api.models import models_router
from server.api.remote_images import RemoteImages
from server.api.responses import responses_router
from server.api.tokenize import tokenize_router
from server.engine.client import Engine
from server.metrics import Metrics
from server.settings import Settings
from server.version import VERSION


def create_app(
    settings: Settings,
    engine: Engine,
    *,
    admission: Admission,
    metrics: Metrics,
    keys: KeyRing,
    remote_images: RemoteImages,
) -> FastAPI:
    """The ASGI application.

    A failure of any kind travels up to `RequestContext`, which renders it; the router's own exceptions are rendered
    by `on_http_exception`. No pages of documentation: they would load scripts from elsewhere (docs/decisions/http.md).
    """
    metrics.watch_admission(num_held=lambda: admission.num_held, is_ready=lambda: admission.is_ready)
    app = FastAPI(
        title="minicpmv",
        version=VERSION,
        openapi_url=None,
        # A redirect would be built from the Host header, and clients lose their body on the way.
        redirect_slashes=False,
        middleware=[
            Middleware(RequestContext, metrics=metrics),
            Middleware(ApiKeys, keys=keys, settings=settings, metrics=metrics),
        ],
        exception_handlers={HTTPException: on_http_exception},
    )
    intake = Intake(settings=settings, engine=engine, admission=admission, metrics=metrics, remote_images=remote_images)
    app.include_router(chat_router(intake))
    app.include_router(completions_router(intake))
    app.include_router(responses_router(intake))
    app.include_router(tokenize_router(intake))
    app.include_router(models_router(engine))
    app.include_router(health_router(engine=engine, admission=admission, metrics=metrics))
    return app
