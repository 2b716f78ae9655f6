"""The page and the API around one network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from .. import __version__
from ..core.errors import RequestError, ScanvitError
from ..pages.page import environment
from .answers import OPENAPI_VERSION, Gate, Model, Reading, Refusal, refused
from .desk import Desk
from .guards import Guard
from .reader import MOST_FRAMES, read_image

if TYPE_CHECKING:
    from ..evaluation.engine import Engine

TYPES = ("image/png", "image/jpeg", "application/dicom", "application/octet-stream")
_STATUSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "No file"},
    401: {"description": "The secret is missing or wrong"},
    403: {"description": "A page of another site"},
    408: {"description": "The file came too slowly"},
    413: {"description": "Too large, or too many frames or pixels"},
    415: {"description": "Not sent as an image"},
    421: {"description": "Not the name of this server"},
    422: {"description": "No usable image, or a wrong parameter"},
    503: {"description": "Busy"},
    504: {"description": "It took too long"},
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    token: str | None = None
    """What callers of the API have to send; None asks for nothing."""
    allowed_hosts: tuple[str, ...] = ()
    """Names of the server, beside ``localhost`` and addresses."""
    most_bytes: int = 64 * 10**6
    timeout_s: float = 30.0
    """To receive a request, and again to answer it."""
    most_requests: int = 8
    """At once."""


def make_app(engine: Engine, settings: Settings) -> FastAPI:
    """Whatever goes wrong is answered by ``answers.Refusal``."""
    desk = Desk(most=settings.most_requests, most_bytes=settings.most_bytes, timeout_s=settings.timeout_s)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    about = "Classifies an image. For research; it must not decide about a patient."
    app = FastAPI(title="scanvit", version=OPENAPI_VERSION, description=about, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Guard, allowed_hosts=settings.allowed_hosts, token=settings.token)
    _add_refusals(app)
    _add_page(app, engine)
    errors: dict[int | str, dict[str, Any]] = {code: {"model": Refusal, **about} for code, about in _STATUSES.items()}
    model = describe(engine, settings)
    body = {"required": True, "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in TYPES}}

    @app.get("/health", responses={code: errors[code] for code in (403, 421)})
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/model", responses={code: errors[code] for code in (401, 403, 421)})
    async def about_model() -> Model:
        return model

    @app.post("/api/predict", responses=errors, openapi_extra={"requestBody": body}, response_model_exclude_unset=True)
    async def predict(
        request: Request,
        first_reading: Annotated[str | None, Query(max_length=500, description="A class: is it what the network says?")] = None,
        frame: Annotated[int, Query(ge=1, le=MOST_FRAMES, description="Of a volume: the one to draw.")] = 1,
        pictures: Annotated[bool, Query(description="Draw the image, and where the network looked.")] = True,
    ) -> Any:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in TYPES:
            hint = f"Send the bytes of the file as the body, with one of: {', '.join(TYPES)}."
            raise RequestError(f"The content type {kind or 'of nothing'!r:.80} is not taken.", hint=hint, status=415)
        if first_reading is not None and first_reading not in engine.class_names:
            raise RequestError(f"There is no class {first_reading!r:.80}.", hint=f"Classes: {', '.join(engine.class_names)}"[:500], status=422)
        async with desk.place():
            data = await desk.receive(request)
            work: Callable[[], Reading] = partial(read_image, engine, data, first_reading=first_reading, frame=frame, pictures=pictures)
            reading = await desk.compute(request, work)
        # As text, by pydantic: FastAPI would look at each of the pictures' bytes once more.
        return Response(reading.model_dump_json(exclude_unset=True), media_type="application/json")

    predict.__annotations__["return"] = Reading
    return app


def describe(engine: Engine, settings: Settings) -> Model:
    calibration = engine.calibration
    thresholds = (
        [{"class_name": t.class_name, "rule": t.rule, "target": t.target, "threshold": t.threshold} for t in calibration.thresholds] if calibration else []
    )
    gates = [Gate(**{key: str(gate.get(key) or "") for key in ("gate", "title", "verdict", "reason")}) for gate in engine.record.get("audit", [])]
    return Model(
        scanvit=__version__,
        engine=engine.name,
        class_names=engine.class_names,
        contract=engine.contract.to_dict(),
        fingerprint=engine.record.get("fingerprint", ""),
        audit=gates,
        calibrated=calibration is not None,
        coverage=calibration.conformal.coverage if calibration else None,
        thresholds=thresholds,
        explained_by=engine.explained_by,
        most_bytes=settings.most_bytes,
        most_frames=MOST_FRAMES,
    )


def _add_page(app: FastAPI, engine: Engine) -> None:
    templates = environment("scanvit.serving")
    page = templates.get_template("reader.html.j2").render(class_names=engine.class_names, version=__version__)
    style = "".join(templates.get_template(name).render() for name in ("style.css", "reader.css"))
    script = templates.get_template("reader.js").render()
    for path, content, kind in (("/", page, "text/html"), ("/style.css", style, "text/css"), ("/reader.js", script, "text/javascript")):

        async def file(content: str = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind)

        app.router.add_route(path, _plain(file), include_in_schema=False)


def _plain(make: Callable[[], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await make()

    return answer


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(ScanvitError)
    async def own(request: Request, error: ScanvitError) -> Response:
        return refused(error)

    @app.exception_handler(RequestValidationError)
    async def parameters(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        return refused(RequestError(f"{where}: {first['msg']}.", hint="See /openapi.json.", status=422))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        answer = refused(RequestError(f"{error.detail}: {request.method} {request.url.path!r:.100}.", hint="See /openapi.json.", status=error.status_code))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(ConnectionResetError)
    async def gone(request: Request, error: ConnectionResetError) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(MemoryError)
    async def memory(request: Request, error: MemoryError) -> Response:
        return refused(RequestError("The image takes more memory than there is.", hint="Scale it down first.", status=413))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        hint = "This is a fault of scanvit; its log has the traceback."
        return refused(RequestError(f"Unexpected {type(error).__name__}.", hint=hint, status=500))
