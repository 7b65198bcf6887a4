"""The routes: what may be asked, in which limits, and how it is answered."""

# FastAPI reads the annotations of functions within functions, so none of them may be a string.

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException as RouteError

from gnnrec.errors import ConfigError, DataError, GnnrecError
from gnnrec.service.answers import for_histories, for_items, for_users
from gnnrec.service.guard import BusyError, Guard, Metrics, Workers
from gnnrec.service.holder import Holder, Served
from gnnrec.service.schemas import (
    Alive,
    HistoriesRequest,
    HistoryLists,
    Limits,
    Ready,
    SimilarLists,
    SimilarRequest,
    UserLists,
    UsersRequest,
    limited,
    problems,
)

Body = TypeVar("Body", bound=BaseModel)
_FIELDS = {"users", "histories", "items", "k", "include_seen", "allow", "exclude"}


def create_app(
    holder: Holder, limits: Limits | None = None, admin_token: str | None = None
) -> FastAPI:
    """Return the application over a loaded recommender.

    Args:
        holder: What is served; it is prepared in the background, and `/health/ready` says when.
        limits: Of a request, and of all together.
        admin_token: Allows `POST /admin/reload`; without one there is no such route.
    """
    limits = limits or Limits()
    metrics, workers = Metrics(), Workers(limits)
    metrics.version.set_function(lambda: holder.current.version)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        preparing = asyncio.create_task(asyncio.to_thread(holder.prepare))
        yield
        await preparing
        workers.close()

    app = FastAPI(
        title="gnnrec",
        summary="Recommendations of one saved recommender.",
        version="1",
        docs_url=None,  # its page is fetched from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, limits=limits, metrics=metrics)
    _add_errors(app)

    async def answered(work: Callable[[Served, Body], BaseModel], body: Body) -> Response:
        served = holder.current  # once: a reload meanwhile changes nothing for this request

        def run() -> bytes:
            return work(served, body).model_dump_json().encode()

        return Response(await workers.run(run), media_type="application/json")

    async def recommend(body: UsersRequest) -> Response:
        """Recommend to users of the log."""
        return await answered(for_users, body)

    async def recommend_to_histories(body: HistoriesRequest) -> Response:
        """Recommend to people who are not in the log, by the items that they have.

        The log does not change. A user's history gets nearly the scores that adding the user to
        the log would bring.
        """
        return await answered(for_histories, body)

    async def similar(body: SimilarRequest) -> Response:
        """Find the items most like others, popularity left out."""
        return await answered(for_items, body)

    for path, endpoint, body, model in (
        ("/recommend", recommend, UsersRequest, UserLists),
        ("/recommend/histories", recommend_to_histories, HistoriesRequest, HistoryLists),
        ("/similar", similar, SimilarRequest, SimilarLists),
    ):
        # The limits are told by the schema, so they are part of the body's type.
        endpoint.__annotations__["body"] = limited(body, limits)
        app.post(path, response_model=model, responses=problems(400, 404, 408, 413, 422, 503))(
            endpoint
        )

    @app.get("/health/live", response_model=Alive)
    async def live() -> Alive:
        """Say that the process answers."""
        return Alive(status="alive")

    @app.get("/health/ready", response_model=Ready, responses=problems(503))
    async def ready() -> Ready:
        """Say what is served, once it is prepared."""
        if not holder.ready:
            raise BusyError("the recommender is being prepared; ask again")
        return _ready(holder.current)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def prometheus() -> Response:
        """Give the counts, for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def reload() -> Served:
        try:
            served = await asyncio.to_thread(holder.reload)
        except GnnrecError:
            metrics.reloads.labels("refused").inc()
            raise
        metrics.reloads.labels("done").inc()
        return served

    app.state.reload = reload
    if admin_token is not None:
        _add_admin(app, reload, admin_token)
    return app


def _add_admin(app: FastAPI, reload: Callable[[], Any], admin_token: str) -> None:
    bearer = HTTPBearer(auto_error=False, description="The --admin-token of the service.")

    @app.post("/admin/reload", response_model=Ready, responses=problems(400, 401, 408, 409, 413))
    async def admin_reload(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> Ready:
        """Load the folder again and serve it; one that is damaged is refused, the old one stays."""
        token = "" if given is None else given.credentials
        if not secrets.compare_digest(token.encode(), admin_token.encode()):
            raise HTTPException(
                401, "found no token or another one, expected --admin-token as Bearer",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        try:
            return _ready(await reload())
        except ConfigError as error:
            raise HTTPException(409, str(error)) from error


def _ready(served: Served) -> Ready:
    log = served.recommender.log
    return Ready(
        version=served.version,
        status="ready",
        users=log.n_users,
        items=log.n_items,
        interactions=log.n_interactions,
    )


def _add_errors(app: FastAPI) -> None:
    """Every error is {"error": one sentence}."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            reason = first.get("ctx", {}).get("error", "not readable")
            return _problem(400, f"body: expected JSON ({reason})")
        if isinstance(first.get("input"), bytes):  # what curl -d sends without being told
            return _problem(422, "body: expected JSON with Content-Type: application/json")
        where = "".join(
            f"[{part}]" if isinstance(part, int) else part
            for part in first["loc"][1:]
            if isinstance(part, int) or part in _FIELDS or first["type"] == "extra_forbidden"
        )
        found = repr(first.get("input"))[:80].encode("utf-8", "replace").decode()
        return _problem(422, f"{where or 'body'}: found {found}; {first['msg']}")

    @app.exception_handler(RouteError)
    async def refused(_: Request, error: RouteError) -> JSONResponse:
        said, headers = str(error.detail), dict(error.headers or {})
        if said == "Not Found":
            said += "; /openapi.json has the paths"
        elif "Allow" in headers:
            said += f", expected {headers['Allow']}"
        return _problem(error.status_code, said, headers)

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        return _problem(503, str(error), {"Retry-After": "1"})

    @app.exception_handler(GnnrecError)
    async def failed(_: Request, error: GnnrecError) -> JSONResponse:
        # Once a body has the right form, ids that the catalogue lacks are all that can be wrong.
        status = 404 if isinstance(error, DataError) else 400 if error.exit_code == 2 else 500
        return _problem(status, str(error))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return _problem(500, f"unexpected {type(error).__name__}; the service's log says more")


def _problem(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)
