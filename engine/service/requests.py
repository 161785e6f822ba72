"""A request's body -> what is asked, or a Problem that says what was expected and what came."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.service.problems import Problem, shown
from engine.service.settings import Limits

EXPECTED = {  # of each field, for messages
    "texts": "a list of texts",
    "k": "a whole number from 1",
    "threshold": 'a number from 0 to 1, "auto" or null',
    "allowed": "a list of label ids or label texts, or null",
    "excluded": "a list of label ids or label texts",
    "explain": "true or false",
}
INSIDE = {"texts": "a text", "allowed": "a label id or text", "excluded": "a label id or text"}


class PredictRequest(BaseModel):
    """What `POST /predict` takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: Annotated[list[str], Field(fail_fast=True)] = Field(
        description="texts to be labelled", examples=[["gnome image viewer"]]
    )
    k: int = Field(5, ge=1, description="labels of an answer, at most")
    threshold: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] | None = Field(
        None,
        description="only labels whose probability is at least this; auto: the run's own "
        "threshold, chosen on validation points",
    )
    allowed: Annotated[list[int | str], Field(fail_fast=True)] | None = Field(
        None, description="ids or texts of the labels that are ranked; null: all of them"
    )
    excluded: Annotated[list[int | str], Field(fail_fast=True)] = Field(
        [], description="ids or texts of labels that are no answers, even where allowed"
    )
    explain: bool = Field(False, description="add what each member of a fusion says")


def parse(body: bytes, limits: Limits) -> PredictRequest:
    """Read a body.

    Raises:
        Problem: 400 where it is no JSON, 422 where it is JSON but not what is expected.
    """
    try:
        request = PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise _problem(error.errors(include_url=False, include_context=False)[0]) from None
    _check(request, limits)
    return request


def _problem(error: Any) -> Problem:
    """The first thing that is wrong with a body, by what pydantic says of it."""
    place = error["loc"]
    if error["type"] == "json_invalid":
        why = error["msg"].removeprefix("Invalid JSON: ")
        return Problem(400, f"the body: expected JSON, got {shown(error['input'])} ({why})")
    if not place:
        return Problem(422, f"the body: expected a JSON object, got {shown(error['input'])}")
    field = place[0]
    if error["type"] == "extra_forbidden":
        return Problem(
            422, f"{str(field)[:60]}: no such field; expected some of {', '.join(EXPECTED)}"
        )
    came = "nothing" if error["type"] == "missing" else shown(error["input"])
    if len(place) > 1 and isinstance(place[1], int):
        return Problem(422, f"{field}[{place[1]}]: expected {INSIDE[field]}, got {came}")
    return Problem(422, f"{field}: expected {EXPECTED[field]}, got {came}")


def _check(request: PredictRequest, limits: Limits) -> None:
    """Problem for a request that asks for too much."""
    count = len(request.texts)
    if not 1 <= count <= limits.texts:
        raise Problem(422, f"texts: expected from 1 to {limits.texts:,} texts, got {count:,}")
    for number, text in enumerate(request.texts):
        if len(text) > limits.characters:
            raise Problem(
                422,
                f"texts[{number}]: expected at most {limits.characters:,} characters, got "
                f"{len(text):,}",
            )
    if request.k > limits.k:
        raise Problem(422, f"k: expected from 1 to {limits.k:,}, got {shown(request.k)}")
    for name, labels in (("allowed", request.allowed), ("excluded", request.excluded)):
        if labels is not None and len(labels) > limits.chosen:
            raise Problem(
                422, f"{name}: expected at most {limits.chosen:,} labels, got {len(labels):,}"
            )
