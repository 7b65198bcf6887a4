"""The service: every route, every limit, every error, another recommender under traffic."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time

import httpx
import pandas as pd
import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from gnnrec import service
from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.recommender import Recommender
from gnnrec.service.app import create_app
from gnnrec.service.guard import BusyError, Workers
from gnnrec.service.holder import Holder
from gnnrec.service.schemas import Limits

TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture
def folder(saved_folder, tmp_path):
    return shutil.copytree(saved_folder, tmp_path / "shop")


@pytest.fixture
def holder(folder):
    holder = Holder(folder)
    holder.prepare()
    return holder


@pytest.fixture
def client(holder):
    limits = Limits(max_k=20, max_users=4, max_history=6, max_listed=8, max_body_bytes=2000)
    app = create_app(holder, limits, "secret")
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def listed(frame, name):
    """Lists of a frame of the Recommender as the service writes them."""
    return [
        [
            {"item": item, "score": pytest.approx(score, rel=1e-6)}
            for item, score in zip(rows[name], rows["score"], strict=True)
        ]
        for _, rows in frame.groupby(frame.columns[0], sort=False)
    ]


def test_users_get_what_the_recommender_says(client, holder):
    recommender = holder.current.recommender
    choice = {"k": 5, "exclude": ["i1", "none"], "include_seen": True}
    answer = client.post("/recommend", json={"users": ["u2", "nobody", "u1"], **choice}).json()
    expected = recommender.recommend(["u2", "nobody", "u1"], **choice)
    assert answer["version"] == 1
    assert [one["user"] for one in answer["lists"]] == ["u2", "nobody", "u1"]
    assert [one["known"] for one in answer["lists"]] == [True, False, True]
    assert [one["items"] for one in answer["lists"]] == listed(expected, "item_id")
    only = client.post("/recommend", json={"users": ["u1"], "allow": ["i1", "i2"]}).json()
    expected = recommender.recommend(["u1"], allow=["i1", "i2"])
    assert [i["item"] for i in only["lists"][0]["items"]] == expected.item_id.tolist()
    twice = client.post("/recommend", json={"users": ["u1", "u1"]}).json()["lists"]
    assert twice[0] == twice[1] and len(twice[0]["items"]) == 10


def test_odd_ids_are_unknown_users(client):
    odd = [2**80, -1, " ", "nan"]
    answer = client.post("/recommend", json={"users": odd, "k": 2.0, "exclude": [2**63, 1.0]})
    assert answer.status_code == 200
    assert [(one["user"], one["known"]) for one in answer.json()["lists"]] == [
        (user, False) for user in odd
    ]


def test_histories_get_what_the_recommender_says(client, holder):
    histories = [["i1", "i2", "none"], [], ["i3"]]
    answer = client.post("/recommend/histories", json={"histories": histories, "k": 4}).json()
    expected = holder.current.recommender.recommend_to_histories(histories, 4)
    assert [one["known_items"] for one in answer["lists"]] == [2, 0, 1]
    assert [one["items"] for one in answer["lists"]] == listed(expected, "item_id")
    assert holder.current.recommender.log.n_users == 30


def test_similar_items(client, holder):
    answer = client.post("/similar", json={"items": ["i2", "i1"], "k": 3}).json()
    expected = holder.current.recommender.similar_items(["i2", "i1"], 3)
    assert [one["item"] for one in answer["lists"]] == ["i2", "i1"]
    assert [one["items"] for one in answer["lists"]] == listed(expected, "similar_item")


def test_integer_ids_come_back_as_integers(checkpoint, frame, transfer_config, tmp_path):
    numbers = frame.assign(user_id=frame.user_id.str[1:].astype(int), item_id=1)
    numbers["item_id"] = frame.item_id.str[1:].astype(int)
    Recommender(checkpoint, transfer_config, "cpu").fit(numbers).save(tmp_path / "r")
    with TestClient(create_app(Holder(tmp_path / "r"))) as client:
        answer = client.post("/recommend", json={"users": [1, "1"], "k": 2}).json()
    first, second = answer["lists"]
    assert first["items"] == second["items"] and (first["user"], second["user"]) == (1, "1")
    assert all(type(one["item"]) is int for one in first["items"])


WRONG = [
    ("/recommend", {"users": []}, 422, "users"),
    ("/recommend", {"users": ["u1"], "k": 0}, 422, "k: found 0"),
    ("/recommend", {"users": ["u1"], "k": 21}, 422, "k: found 21"),
    ("/recommend", {"users": ["u1"], "k": "3"}, 422, "k: found '3'"),
    ("/recommend", {"users": ["u1"], "kk": 3}, 422, "kk"),
    ("/recommend", {"users": ["u1", None]}, 422, "users[1]: found None"),
    ("/recommend", {"users": [True]}, 422, "users[0]: found True"),
    ("/recommend", {"users": ["x" * 257]}, 422, "users[0]"),
    ("/recommend", {"users": ["u1"], "k": True}, 422, "k: found True"),
    ("/recommend", {"users": ["u1"], "k": 1.5}, 422, "k: found 1.5"),
    ("/recommend", {"users": ["u"] * 5}, 422, "users"),
    ("/recommend", {"users": ["u1"], "allow": ["i"] * 9}, 422, "allow"),
    ("/recommend", {"users": ["u1"], "allow": ["none"]}, 404, "allow list"),
    ("/recommend", {"users": ["u1"], "include_seen": 1}, 422, "include_seen"),
    ("/recommend", [], 422, "body"),
    ("/recommend/histories", {"histories": [["i1"] * 7]}, 422, "histories[0]"),
    ("/recommend/histories", {"histories": [[]] * 5}, 422, "histories"),
    ("/similar", {"items": ["none"]}, 404, "'none'"),
    ("/similar", {"items": ["i1"] * 5}, 422, "items"),
    ("/nowhere", {}, 404, "/openapi.json"),
    ("/health/live", {}, 405, "expected GET"),
]


@pytest.mark.parametrize(("path", "body", "status", "fragment"), WRONG)
def test_a_mistake_gets_one_sentence(client, path, body, status, fragment):
    answer = client.post(path, json=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"] and fragment in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "status", "fragment"),
    [
        (b"{", 400, "expected JSON"),
        (b"", 422, "body"),
        (b"\xff", 400, "body"),
        (b'{"users": ["\\ud800"]}', 422, "users[0]"),
        (b'{"users": [' + b"1," * 2000 + b"1]}", 413, "2000 bytes"),
    ],
)
def test_bodies_that_are_none(client, content, status, fragment):
    answer = client.post(
        "/recommend", content=content, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert fragment in answer.json()["error"]


def test_a_body_without_a_content_type_is_told_which(client):
    answer = client.post("/recommend", content=b'{"users": ["u1"]}')
    assert answer.status_code == 422 and "Content-Type" in answer.json()["error"]


def test_a_body_that_tells_no_length_is_measured(client):
    answer = client.post("/recommend", content=(b"x" * 500 for _ in range(9)))
    assert answer.status_code == 413


def test_health_and_metrics(folder):
    holder = Holder(folder)
    app = create_app(holder)
    client = TestClient(app)  # without its start: nothing is prepared
    assert client.get("/health/live").json() == {"status": "alive"}
    early = client.get("/health/ready")
    assert early.status_code == 503 and early.headers["retry-after"]
    with client:
        while client.get("/health/ready").status_code == 503:
            time.sleep(0.01)
        ready = client.get("/health/ready").json()
        assert ready == {
            "status": "ready", "version": 1, "users": 30, "items": 25,
            "interactions": holder.current.recommender.log.n_interactions,
        }  # fmt: skip
        client.post("/recommend", json={"users": ["u1"]})
        client.post("/recommend", json={})
        client.get("/some/path")
        text = client.get("/metrics").text
    for line in (
        'gnnrec_requests_total{method="POST",route="/recommend",status="200"} 1.0',
        'gnnrec_requests_total{method="POST",route="/recommend",status="422"} 1.0',
        'gnnrec_requests_total{method="GET",route="other",status="404"} 1.0',
        'gnnrec_request_seconds_count{route="/recommend"} 2.0',
        "gnnrec_requests_in_flight 1.0",  # itself
        "gnnrec_version 1.0",
    ):
        assert line in text


def test_too_many_and_too_slow_requests_get_503():
    async def run():
        workers = Workers(Limits(threads=1, queue=1, seconds=0.05))
        release = threading.Event()
        held = [asyncio.create_task(workers.run(release.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="limit is 2"):
            await workers.run(lambda: 1)
        for one in held:
            with pytest.raises(BusyError, match="longer than"):
                await one
        # The first still runs: a thread cannot be stopped. The second never began.
        with pytest.raises(BusyError, match="longer than"):
            await workers.run(lambda: 1)
        release.set()
        while workers._taken:
            await asyncio.sleep(0.001)
        assert await workers.run(lambda: 1) == 1
        workers.close()

    asyncio.run(run())


def test_a_slow_answer_is_a_503_with_a_sentence(holder, monkeypatch):
    app = create_app(holder, Limits(seconds=0.05))
    release = threading.Event()
    monkeypatch.setattr("gnnrec.service.app.for_users", lambda *_: release.wait(10))
    with TestClient(app) as client:
        answer = client.post("/recommend", json={"users": ["u1"]})
        release.set()
    assert answer.status_code == 503 and "longer than 0.05 s" in answer.json()["error"]


# Another recommender takes the place of the first.


def another(folder):
    """Replace the folder by one whose log has one more user."""
    recommender = Recommender.load(folder, "cpu")
    recommender.update(pd.DataFrame({"user_id": ["fresh"] * 2, "item_id": ["i1", "i2"]}))
    recommender.save(folder)


def test_reload_needs_the_token(client, holder):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
        answer = client.post("/admin/reload", headers=headers)
        assert answer.status_code == 401 and "--admin-token" in answer.json()["error"]
    assert holder.current.version == 1
    with TestClient(create_app(holder)) as without:
        assert without.post("/admin/reload", headers=TOKEN).status_code == 404


def test_a_damaged_folder_is_refused_and_the_old_one_stays(client, holder, folder):
    before = client.post("/recommend", json={"users": ["u1"]}).json()
    (folder / "items.parquet").write_bytes(b"PAR1")
    answer = client.post("/admin/reload", headers=TOKEN)
    assert answer.status_code == 400 and "items.parquet" in answer.json()["error"]
    assert client.post("/recommend", json={"users": ["u1"]}).json() == before
    assert 'gnnrec_reloads_total{result="refused"} 1.0' in client.get("/metrics").text
    with pytest.raises(CheckpointError):
        Holder(folder)


def test_a_folder_that_is_replaced_while_it_is_read_is_refused(holder, folder, monkeypatch):
    load = Recommender.load

    def slowly(*arguments):
        loaded = load(*arguments)
        monkeypatch.setattr(Recommender, "load", load)
        another(folder)
        return loaded

    monkeypatch.setattr(Recommender, "load", slowly)
    with pytest.raises(CheckpointError, match="replaced while it was read"):
        holder.reload()
    assert holder.current.version == 1
    assert holder.reload().version == 2


def test_one_reload_at_a_time(client, holder):
    with holder._loading:
        assert client.post("/admin/reload", headers=TOKEN).status_code == 409
    with holder._loading, pytest.raises(ConfigError):
        holder.reload()


def test_reload_under_traffic_drops_nothing(holder, folder):
    app = create_app(holder, Limits(queue=500), "secret")
    old = Recommender.load(folder, "cpu").recommend(["fresh"], 5)
    another(folder)
    new = Recommender.load(folder, "cpu").recommend(["fresh"], 5)

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://it") as client:
            done = asyncio.Event()

            async def ask():
                answers, after = [], 0
                while after < 3:
                    after += done.is_set()
                    answers.append(
                        await client.post("/recommend", json={"users": ["fresh"], "k": 5})
                    )
                return answers

            asking = [asyncio.create_task(ask()) for _ in range(4)]
            await asyncio.sleep(0.05)
            swapped = await client.post("/admin/reload", headers=TOKEN)
            done.set()
            return swapped, [one for each in await asyncio.gather(*asking) for one in each]

    swapped, answers = asyncio.run(run())
    assert swapped.json()["version"] == 2 and swapped.json()["users"] == 31
    assert {answer.status_code for answer in answers} == {200}
    expected = {1: (False, listed(old, "item_id")[0]), 2: (True, listed(new, "item_id")[0])}
    versions = [answer.json()["version"] for answer in answers]
    assert set(versions) == {1, 2}
    for answer in answers:
        one = answer.json()["lists"][0]
        assert (one["known"], one["items"]) == expected[answer.json()["version"]]


def test_without_the_extra_there_is_one_line(run, work, monkeypatch):
    monkeypatch.setattr(service, "_NEEDS", ("fastapi", "no_such_module"))
    code, _, err = run("serve", "rec")
    assert (code, err) == (2, "error: serving needs an extra: pip install 'gnnrec[serve]'\n")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["no"], "no such folder"),
        (["ck"], "found a checkpoint"),
        (["rec", "--max-k", "0"], "--max-k"),
        (["rec", "--port", "70000"], "--port"),
        (["rec", "--admin-token", ""], "--admin-token"),
        (["rec", "--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
    ],
)
def test_mistakes_on_the_command_line(run, work, arguments, fragment):
    code, _, err = run("serve", *arguments)
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and fragment in last


def test_the_schema_describes_every_field(client):
    schema = client.get("/openapi.json").json()
    for name, model in schema["components"]["schemas"].items():
        for field, about in model["properties"].items():
            assert about.get("description"), f"{name}.{field}"
    for path, methods in schema["paths"].items():
        for about in methods.values():
            assert about["description"], path
    users = schema["components"]["schemas"]["UsersRequest"]["properties"]
    assert users["k"]["maximum"] == 20 and users["users"]["maxItems"] == 4
    assert users["users"]["examples"] and json.dumps(users["allow"]).count('"maxItems": 8') == 1
