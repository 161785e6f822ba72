"""What answers look like: for the description of the interface (`/openapi.json`)."""

from __future__ import annotations

from pydantic import BaseModel, Field


class NamedLabel(BaseModel):
    """A label."""

    label: int = Field(description="its id", examples=[17])
    text: str = Field(examples=["Viewer for images"])


class RankedLabel(NamedLabel):
    """A label of an answer."""

    score: float = Field(description="by which the model ranks", examples=[0.734509])
    probability: float | None = Field(
        None, description="that the label is right; null where the run was not calibrated"
    )
    name: str | None = Field(
        None, description="the label's own; absent where the data set has no names of labels"
    )


class MemberSays(BaseModel):
    """What a member of a fusion says of a text."""

    name: str
    labels: list[NamedLabel] = Field(description="its own best")
    adds: list[float] = Field(
        description="what it adds to the score of each label of the answer, in log-odds"
    )


class Predictions(BaseModel):
    """Answers in the order of the texts."""

    answers: list[list[RankedLabel]]
    score_is: str = Field(description="what a score is")
    members: list[list[MemberSays]] | None = Field(None, description="with `explain` alone")


class Labels(BaseModel):
    """A page of labels, by id."""

    total: int = Field(description="labels that the query finds")
    labels: list[NamedLabel]
    next: int | None = Field(description="offset of the next page; null on the last")


class ModelFacts(BaseModel):
    """What a model is."""

    run: str = Field(description="name of its folder")
    method: str
    data: str
    labels: int
    members: list[str] = Field(description="of a fusion")
    calibrated: bool = Field(description="whether answers have probabilities")
    score_is: str = Field(description="what a score is")


class HealthLimits(BaseModel):
    """The most that a request may ask for."""

    texts: int
    characters: int
    k: int
    body: int


class Health(BaseModel):
    """What runs. Times are UTC."""

    status: str = Field(examples=["ok"])
    model: ModelFacts
    loaded: str = Field(description="when the model was")
    started: str = Field(description="when the process was")
    reload_failed: str | None = Field(description="when the last reload did; null: it did not")
    process: int
    token: bool = Field(description="whether requests need one")
    limits: HealthLimits


class Refused(BaseModel):
    """Why a request was not answered."""

    detail: str = Field(description="what was expected and what came")
