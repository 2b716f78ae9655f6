"""What the API answers: the shapes in /openapi.json, and the one form of an error."""

from __future__ import annotations

from typing import Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from ..core.errors import RequestError, ScanvitError

OPENAPI_VERSION = "1"


class Fault(BaseModel):
    type: str = Field(description="The name of the error.")
    code: int = Field(description="The exit code that the command line has for it.")
    message: str
    hint: str | None = Field(description="What to do.")


class Refusal(BaseModel):
    error: Fault


class Gate(BaseModel):
    gate: str
    title: str
    verdict: str
    reason: str | None = None


class Model(BaseModel):
    scanvit: str
    engine: str
    class_names: list[str]
    contract: dict[str, Any] = Field(description="What happens to the pixels before the network sees them.")
    fingerprint: str = Field(description="Of the pack that it was trained on; empty where that is not known.")
    audit: list[Gate] = Field(description="Gates of the pack's audit that did not pass.")
    calibrated: bool = Field(description="Whether probabilities, operating points, sets and outliers were fitted on val.")
    coverage: float | None = Field(description="What the sets of classes promise.")
    thresholds: list[dict[str, Any]] = Field(description="Operating points: class_name, rule, target, threshold of the calibrated probability.")
    explained_by: str
    most_bytes: int
    most_frames: int


class Judgement(BaseModel):
    frame: int | None = Field(description="From 1; null where the file is the image.")
    prediction: str
    probability: float
    probabilities: dict[str, float]
    operating_points: dict[str, dict[str, bool]] | None = None
    conformal_set: list[str] | None = None
    coverage: float | None = None
    outlier_score: float | None = Field(None, description="Above 1 the image is unlike all that the network knows.")
    outlier: bool | None = None
    first_reading: str | None = None
    agreement: Literal["agrees", "differs", "unknown class"] | None = None


class Pictures(BaseModel):
    frame: int
    width_px: int = Field(description="Of the file, before resizing.")
    height_px: int
    image: str = Field(description="data:image/png, squashed to a square: what the network sees, at a higher resolution.")
    attention: str = Field(description="data:image/png of the same square, transparent where nothing speaks for the class.")
    explains: str = Field(description="The class whose reading it shows.")
    explained_by: str


class Reading(BaseModel):
    images: list[Judgement] = Field(description="One a frame.")
    pictures: Pictures | None


def refused(error: ScanvitError, *, status: int | None = None) -> JSONResponse:
    """Status 422 for what is wrong with the image, unless the error has one of its own."""
    code = status or (error.status if isinstance(error, RequestError) else 422)
    fault = Fault(type=type(error).__name__, code=error.exit_code, message=error.message, hint=error.hint)
    headers = {"Retry-After": "2"} if code == 503 else {"WWW-Authenticate": "Bearer"} if code == 401 else {}
    return JSONResponse(Refusal(error=fault).model_dump(), status_code=code, headers=headers)
