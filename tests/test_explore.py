"""The answers behind the page, and the server: what it says, whom it refuses."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from conftest import make_log
from made_shop import EVIL, item_frame, made_shop

from gnnrec.errors import ConfigError, DataError
from gnnrec.explore import Explorer, Server, open_explorer
from gnnrec.explore.answers import read_columns
from gnnrec.recommender import Recommender


@pytest.fixture(scope="module")
def shop(checkpoint, frame, transfer_config, tmp_path_factory):
    return made_shop(checkpoint, frame, transfer_config, tmp_path_factory.mktemp("explore"))


@pytest.fixture(scope="module")
def explorer(shop):
    folder, other, items = shop
    return open_explorer(folder, items, other, "cpu")


@pytest.fixture(scope="module")
def server(explorer):
    with Server(explorer, 0) as opened:
        thread = threading.Thread(target=opened.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def value(server, path, **query):
    answer, body = ask(server, f"/api/{path}?{urlencode(query)}")
    return answer.status, json.loads(body)


def test_about_counts_what_is_there(explorer, frame):
    about = explorer.about()
    assert (about["n_items"], about["n_cold_items"]) == (27, 27 - frame.item_id.nunique())
    assert about["n_users"] == frame.user_id.nunique() and about["n_titles"] == 27
    assert about["beside"] == "other (zero-shot)" and about["columns"] == ["genre"]
    assert {f["subject"] for f in about["findings"]} >= {"texts", "users", "items", "interactions"}
    assert about["metrics"]["ndcg@20"] > 0 and about["seconds"]["total"] > 0


def test_search_finds_ids_and_titles_the_exact_first(explorer, frame):
    found = explorer.search("item", "I1")
    assert found["rows"][0]["item"] == "i1"
    assert {row["item"] for row in found["rows"]} >= {"i1", "i10", "i19"}
    assert explorer.search("item", "SCIENCE fiction")["n"] == 7
    assert explorer.search("item", "onerror")["rows"][0]["title"] == EVIL
    assert explorer.search("item", "nothing like it") == {"n": 0, "rows": []}
    users = explorer.search("user", "")
    assert users["n"] == frame.user_id.nunique() and len(users["rows"]) == 20
    sizes = [row["n_own"] for row in users["rows"]]
    assert sizes == sorted(sizes, reverse=True)


def test_search_leaves_accents_out(shop):
    folder, _, _ = shop
    recommender = Recommender.load(folder, "cpu")
    recommender.catalogue.titles[5] = "Käsefüße von Zoë"
    explorer = Explorer(recommender, "shop")
    for wanted in ("käsefüße", "KASEFUSSE", "zoe"):
        assert [row["item"] for row in explorer.search("item", wanted)["rows"]] == [
            explorer._items[5]
        ]


def test_a_user_s_lists_are_the_recommenders(explorer, shop, frame):
    found = explorer.user("u3")
    for key, folder in (("list", shop[0]), ("beside", shop[1])):
        lists = Recommender.load(folder, "cpu").recommend(["u3"], k=10)
        assert [row["item"] for row in found[key]] == lists.item_id.tolist()
    have = set(frame.item_id[frame.user_id == "u3"])
    assert {row["item"] for row in found["own"]} == have and found["n_own"] == len(have)
    latest = frame[frame.user_id == "u3"].sort_values("timestamp").item_id.iloc[-1]
    assert found["own"][0]["item"] == latest and found["ordered_by"] == "time"
    counts = frame.item_id.value_counts()
    expected = sorted((int(counts[i]) for i in counts.index if i not in have), reverse=True)
    assert [row["people"] for row in found["popular"]] == expected[:10]
    assert not have & {row["item"] for row in found["popular"]}
    words = explorer.words("u3")["rows"]
    assert len(words) == len(found["list"]) and all(words)
    for row, said in zip(found["list"], words, strict=True):
        assert str(row["people"]) in " ".join(said)


def test_why_adds_up(explorer):
    lists = explorer.recommender.recommend(["u3"], k=1)
    found = explorer.why("u3", lists.item_id[0])
    score = float(lists.score[0])
    assert sum(part["value"] for part in found["parts"]) == pytest.approx(score, abs=1e-4)
    for part in found["parts"]:
        total = sum(part["shares"]) + part["others"] + part["rest"]
        assert total == pytest.approx(part["value"], abs=1e-5)


def test_an_item_its_likes_and_its_people(explorer, shop, frame):
    found = explorer.item("i5")
    near = Recommender.load(shop[0], "cpu").similar_items(["i5"], k=10)
    assert [row["item"] for row in found["similar"]] == near.similar_item.tolist()
    holders = set(frame.user_id[frame.item_id == "i5"])
    assert found["people"] == len(holders)
    assert {row["user"] for row in found["users"]} <= holders
    assert found["texts"] == {"genre": "comedy"}
    assert explorer.item("i26")["people"] == 0


def test_cold_ones(explorer, frame):
    found = explorer.cold()
    counts = frame.item_id.value_counts()
    assert {row["item"] for row in found["items"]} == {
        f"i{n}" for n in range(27) if counts.get(f"i{n}", 0) <= 2
    }
    had = frame.user_id.value_counts()
    assert {row["user"] for row in found["users"]} == set(had.index[had <= 1])


def test_the_map_holds_every_item_of_a_small_catalogue(explorer):
    found = explorer.map()
    vectors = explorer.recommender.vectors.item_vectors
    assert found["n"] == len(found["items"]) == int((vectors.abs().sum(dim=1) > 0).sum())
    assert {len(found[key]) for key in ("titles", "people", "x", "y")} == {found["n"]}
    assert all(-0.02 <= value <= 1.02 for key in "xy" for value in found[key])
    column = found["columns"]["genre"]
    genre = item_frame().set_index("item_id").genre.str.split("|").str[0]
    for item, place in zip(found["items"], column["index"], strict=True):
        assert column["values"][place] == genre[item]


def test_a_large_map_is_thinned_out(monkeypatch, shop):
    monkeypatch.setattr("gnnrec.explore.answers._MAP", 10)
    explorer = Explorer(Recommender.load(shop[0], "cpu"), "shop")
    found = explorer.map()
    assert len(found["items"]) == len(set(found["items"])) == 10 < found["n"]
    most = sorted(np.bincount(explorer.recommender.log.items).tolist(), reverse=True)[:5]
    assert found["people"][:5] == most
    assert torch.tensor(found["x"]).std() > 0


def test_columns_that_say_something(tmp_path, shop):
    recommender = Recommender.load(shop[0], "cpu")
    assert list(read_columns(shop[2], recommender)) == ["genre"]  # titles and years are all apart
    item_frame()[["item_id", "year"]].to_csv(tmp_path / "years.csv", index=False)
    with pytest.raises(DataError, match="years.csv: found no column"):
        read_columns(tmp_path / "years.csv", recommender)
    item_frame().rename(columns={"item_id": "id"}).to_csv(tmp_path / "id.csv", index=False)
    with pytest.raises(DataError, match="expected 'item_id'"):
        read_columns(tmp_path / "id.csv", recommender)


def test_one_beside_has_to_know_the_users(checkpoint, shop, tmp_path, transfer_config):
    other = Recommender(checkpoint, transfer_config, "cpu").fit(make_log(5, 9, 30, seed=4))
    other.save(tmp_path / "other")
    with pytest.raises(ConfigError, match="--beside .* same log"):
        open_explorer(shop[0], None, tmp_path / "other", "cpu")


def test_the_server_answers_as_the_explorer(server, explorer):
    assert value(server, "search", kind="item", q="i1") == (200, explorer.search("item", "i1"))
    assert value(server, "user", id="u3") == (200, explorer.user("u3"))
    assert value(server, "words", id="u3") == (200, explorer.words("u3"))
    assert value(server, "user", id="nobody")[0] == 404
    assert "nobody" in value(server, "user", id="nobody")[1]["error"]
    for query in ({}, {"id": "u3", "k": "9"}, {"id": "x" * 5000}):
        assert value(server, "user", **query)[0] == 400
    assert value(server, "nothing")[0] == 404


@pytest.mark.parametrize("path", ["/../pyproject.toml", "/%2e%2e/answers.py", "/answers.py"])
def test_no_other_file_is_served(server, path):
    assert ask(server, path)[0].status == 404


@pytest.mark.parametrize("path", ["/", "/page.js", "/map.js", "/page.css", "/api/about"])
def test_every_answer_carries_the_policy(server, path):
    answer, body = ask(server, path)
    assert answer.status == 200 and len(body) > 500
    policy = answer.getheader("Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert b"http://" not in body and b"https://" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_nothing_but_get(server, method):
    answer, _ = ask(server, "/api/about", method)
    assert answer.status == 405 and answer.getheader("Allow") == "GET"


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1", "127.0.0.1:1", ""])
def test_another_name_of_this_machine_is_refused(server, host):
    answer, body = ask(server, "/api/about", Host=host)
    assert answer.status == 403 and b"n_users" not in body


def test_it_listens_on_this_machine_alone_and_says_when_a_port_is_taken(server, explorer):
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(ConfigError, match=f"--port {server.server_port}: cannot listen"):
        Server(explorer, server.server_port)


def test_several_may_ask_at_once(server):
    found = {}

    def one(user):
        found[user] = value(server, "user", id=user)

    threads = [threading.Thread(target=one, args=(f"u{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[f"u{n}"][1]["id"] == f"u{n}" for n in range(6))


@pytest.mark.parametrize(
    ("no_open", "number"), [(True, signal.SIGINT), (False, signal.SIGINT), (True, signal.SIGTERM)]
)
def test_the_command_serves_until_it_is_stopped(work, run, monkeypatch, request, no_open, number):
    if number == signal.SIGINT:  # a shell's background job has it ignored, and hands that on
        before = signal.signal(number, signal.default_int_handler)
        request.addfinalizer(lambda: signal.signal(number, before))
    served, opened = [], threading.Event()

    def stop(server, *arguments):
        served.append(server.url)
        if not no_open:
            assert opened.wait(20)
        os.kill(os.getpid(), number)
        raise AssertionError("the signal did not stop it")

    monkeypatch.setattr(Server, "serve_forever", stop)
    monkeypatch.setattr("webbrowser.open", lambda url: opened.set())
    options = ["--no-open"] if no_open else []
    code, out, err = run("explore", "rec", "--port", "0", "--json", *options)
    assert code == 0 and "error" not in err, err
    assert [json.loads(out)["url"]] == served and served[0] in err
    assert opened.is_set() is not no_open
