"""The OpenAPI schema kept by what the service answers, on generated requests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis")
service = pytest.importorskip("gnnrec.service.app", exc_type=ImportError)
LIMITS = {"max_users": 3, "max_history": 4, "max_listed": 4, "max_k": 9, "seconds": 30}
ROUTES = [
    ("/recommend", "POST"),
    ("/recommend/histories", "POST"),
    ("/similar", "POST"),
    ("/health/live", "GET"),
    ("/health/ready", "GET"),
    ("/metrics", "GET"),
    ("/admin/reload", "POST"),
]


@pytest.fixture(scope="module")
def api(saved_folder):
    holder = service.Holder(saved_folder)
    holder.prepare()
    app = service.create_app(holder, service.Limits(**LIMITS), "secret")
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize(("path", "method"), ROUTES)
@pytest.mark.parametrize("kind", ["positive", "negative"])
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_answers_are_what_the_schema_says(api, path, method, kind, data):
    if kind == "negative" and path not in ("/recommend", "/recommend/histories", "/similar"):
        return  # nothing to get wrong
    mode = schemathesis.GenerationMode(kind)
    case = data.draw(api[path][method].as_strategy(generation_mode=mode))
    case.call_and_validate()


def test_every_route_is_asked(api):
    found = {(op.ok().path, op.ok().method.upper()) for op in api.get_all_operations()}
    assert found == set(ROUTES)
