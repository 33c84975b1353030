"""The dashboard's ASGI app: joins the page modules behind one guard, and says what each refusal looks like."""

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from compliance_pipeline import database
from compliance_pipeline.asgi import Rejected, healthz
from compliance_pipeline.clock import Clock, utc_now
from compliance_pipeline.dashboard import api, exports, operations, overview, policies, recordings, violations, what_if
from compliance_pipeline.dashboard.access import Access, Guard, Notice, Role, needs
from compliance_pipeline.dashboard.pages import STATIC, Board, render
from compliance_pipeline.figures.snapshots import NoSnapshot, folder_of
from compliance_pipeline.settings import Settings

PAGES = (overview, violations, recordings, operations, policies, what_if, api, exports)


class _Assets(StaticFiles):
    """A browser asks only once for what a page names with its digest."""

    def file_response(self, full_path: Any, stat_result: Any, scope: Scope, status_code: int = 200) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        if scope["query_string"]:
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def create_app(settings: Settings, *, clock: Clock = utc_now) -> Starlette:
    """Raises AccessNotConfigured where others could look without signing in."""
    engine = database.connect(settings.inbox_database_url)
    access = Access(settings, engine, clock, page=_notice)

    async def nothing_yet(request: Request, _error: Exception) -> Response:
        message = "no figures were published yet: they appear within a minute of the first recording; reload then"
        return access.refuse(request, Rejected(503, "nothing_yet", message, headers={"Retry-After": "30"}))

    app = Starlette(
        routes=[
            *access.routes,
            *(route for page in PAGES for route in page.routes),
            Mount("/static", _Assets(directory=STATIC), name="static"),
            Route("/healthz", needs(Role.PUBLIC)(healthz)),
        ],
        middleware=[
            Middleware(Guard, access=access),
            Middleware(GZipMiddleware, minimum_size=1000, compresslevel=6),
        ],
        exception_handlers={**access.exception_handlers, NoSnapshot: nothing_yet},
    )
    app.state.access = access
    app.state.board = Board(settings, engine, clock, folder_of(settings.home))
    return app


def _notice(request: Request, notice: Notice) -> Response:
    return render(request, "error.html", status=notice.status, notice=notice)
