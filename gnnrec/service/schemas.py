"""What the service takes and gives, with its limits: the source of the OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    create_model,
)

MAX_ID = 256  # characters
Body = TypeVar("Body", bound=BaseModel)


def _whole(value: object) -> object:
    """4.0 is an integer in JSON Schema; "4" and true are none."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


ItemId = (
    Annotated[StrictInt, BeforeValidator(_whole)]
    | Annotated[StrictStr, Field(min_length=1, max_length=MAX_ID)]
)
UserId = ItemId


class Limits(BaseModel):
    """How much one request, and all at once, may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_k: int = Field(100, ge=1)
    max_users: int = Field(100, ge=1)
    max_history: int = Field(1000, ge=1)
    max_listed: int = Field(10_000, ge=1)
    max_body_bytes: int = Field(2**20, ge=1)
    seconds: float = Field(5.0, gt=0)
    threads: int = Field(2, ge=1)
    queue: int = Field(64, ge=0)


class _Request(BaseModel):
    """Lengths and sizes come with `limited`."""

    model_config = ConfigDict(extra="forbid")


class _Choice(_Request):
    k: int = Field(10, description="Length of a list.", examples=[10])
    include_seen: bool = Field(
        False, strict=True, description="Also recommend what somebody has already."
    )
    allow: list[ItemId] | None = Field(
        None, description="Only these items may be recommended.", examples=[["i1", "i2", "i3"]]
    )
    exclude: list[ItemId] | None = Field(
        None, description="These items may not be recommended.", examples=[["i4"]]
    )


class UsersRequest(_Choice):
    """Whom to recommend to, by their ids in the log."""

    users: list[UserId] = Field(
        description="User ids. One that the log does not know gets popular items, `known` false.",
        examples=[["u1", "u2"]],
    )


class HistoriesRequest(_Choice):
    """Whom to recommend to, by the items that they have: people who are not in the log."""

    histories: list[list[ItemId]] = Field(
        description="A list of item ids for each person. Ids that the catalogue lacks say nothing.",
        examples=[[["i1", "i2"], ["i3"]]],
    )


class SimilarRequest(_Request):
    """Items to find the like of."""

    items: list[ItemId] = Field(description="Item ids of the catalogue.", examples=[["i1"]])
    k: int = Field(10, description="Length of a list.", examples=[10])


def limited(base: type[Body], limits: Limits) -> type[Body]:
    """Return a request's model with the limits in it, so that the schema tells them."""

    def ids(most: int, least: int = 0) -> Any:  # noqa: ANN401 (a type)
        return Annotated[list[ItemId], Field(min_length=least, max_length=most)]

    several = Field(min_length=1, max_length=limits.max_users)
    kinds = {
        "k": Annotated[StrictInt, Field(ge=1, le=limits.max_k), BeforeValidator(_whole)],
        "users": ids(limits.max_users, 1),
        "items": ids(limits.max_users, 1),
        "histories": Annotated[list[ids(limits.max_history)], several],  # type: ignore[misc]
        "allow": ids(limits.max_listed) | None,
        "exclude": ids(limits.max_listed) | None,
    }
    fields: dict[str, Any] = {
        name: (kinds[name], Field(old.default, description=old.description, examples=old.examples))
        for name, old in base.model_fields.items()
        if name in kinds
    }
    return create_model(base.__name__, __base__=base, __doc__=base.__doc__, **fields)


class Ranked(BaseModel):
    """An item and its score."""

    item: int | str = Field(description="Item id, as the log has it.", examples=["i7"])
    score: float = Field(description="Higher is better; comparable within one list.")


class UserList(BaseModel):
    """One user's list, best first."""

    user: int | str = Field(description="User id, as it was asked.", examples=["u1"])
    known: bool = Field(description="Whether the log has this user.")
    items: list[Ranked] = Field(description="Best first; fewer than k where fewer remain.")


class HistoryList(BaseModel):
    """One person's list, best first."""

    known_items: int = Field(description="How many items of the history the catalogue has.")
    items: list[Ranked] = Field(description="Best first; fewer than k where fewer remain.")


class SimilarList(BaseModel):
    """The items most like one item."""

    item: int | str = Field(description="Item id, as the log has it.", examples=["i1"])
    items: list[Ranked] = Field(description="Nearest first; the score is a cosine.")


class _Answer(BaseModel):
    version: int = Field(description="Counts the recommenders that were served, from 1.")


class UserLists(_Answer):
    """A list per user, in the order asked."""

    lists: list[UserList] = Field(description="In the order of `users`.")


class HistoryLists(_Answer):
    """A list per history, in the order sent."""

    lists: list[HistoryList] = Field(description="In the order of `histories`.")


class SimilarLists(_Answer):
    """A list per item, in the order asked."""

    lists: list[SimilarList] = Field(description="In the order of `items`.")


class Alive(BaseModel):
    """The process answers."""

    status: str = Field(examples=["alive"], description="Always `alive`.")


class Ready(_Answer):
    """What is served."""

    status: str = Field(examples=["ready"], description="Always `ready`.")
    users: int = Field(description="Users of the log.")
    items: int = Field(description="Items of the catalogue.")
    interactions: int = Field(description="Interactions of the log.")


class Problem(BaseModel):
    """What was wrong, in one sentence: what was found, what was expected."""

    error: str = Field(examples=["k: found 0, expected at least 1"], description="One sentence.")


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of error answers."""
    said = {
        400: "The body is not JSON, or the folder not a recommender.",
        401: "The token is missing or wrong.",
        409: "Another reload is running.",
        408: "The body did not arrive in time.",
        404: "An item, or all of the allowed, are not in the catalogue.",
        413: "The body is too large.",
        422: "A field is wrong.",
        503: "Too busy, too slow or not ready yet; ask again.",
    }
    return {code: {"model": Problem, "description": said[code]} for code in codes}
