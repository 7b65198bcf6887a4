"""A suite end to end on made-up logs: killed, resumed, tuned, summed up."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_logs import stand_in, write_logs

from gnnrec.bench import run_bench
from gnnrec.bench_rows import RUN_COLUMNS
from gnnrec.config import TransferConfig
from gnnrec.device import derive_seed
from gnnrec.errors import CheckpointError, ConfigError, DataError
from gnnrec.interactions import read_interactions
from gnnrec.ledger import Row, read_rows
from gnnrec.machine import peak_memory_mb, reset_peak_memory
from gnnrec.split import make_split
from gnnrec.stats import paired_bootstrap
from gnnrec.suite_file import load_suite

ONLY = ("target=shop", "arm=popularity|scratch|zero-shot|heads")
SCENARIOS = ("main", "cold-items", "cold-users")
FILES = ("runs.csv", "buckets.csv", "curves.csv", "trials.csv", "overlap.csv", "differences.csv")


def is_timing(column: str) -> bool:
    return column.startswith("seconds") or column in ("peak_memory_mb", "hardware", "date")


def untimed(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if not is_timing(k)} for row in read_rows(path)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_logs(tmp_path_factory.mktemp("suite"))


@pytest.fixture(autouse=True)
def text_encoder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, home / "cache")


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """The results of one pass without a break."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, home / "cache")
        found = run_bench(load_suite(home / "suite.toml"), home / "whole", device="cpu", only=ONLY)
    assert (found["n_made"], found["n_before"], found["n_left"]) == (36, 0, 0)
    assert not found["stopped"] and not found["n_waiting"]
    return home / "whole"


class Killed(Exception):
    pass


def test_a_killed_suite_goes_on_and_ends_with_the_same_rows(home, whole, tmp_path):
    suite, out = load_suite(home / "suite.toml"), tmp_path / "out"
    runs: list[object] = []

    def stop(task: object) -> None:
        runs.append(task)
        if len(runs) == 9:
            raise Killed

    with pytest.raises(Killed):
        run_bench(suite, out, device="cpu", only=ONLY, after_run=stop)
    assert len(read_rows(out / "runs.csv")) == 9
    # A process that dies later: parts of a run are written, and half of its row.
    with (out / "runs.csv").open("a") as file:
        file.write((whole / "runs.csv").read_text().splitlines()[10][:150])
    orphan = read_rows(whole / "buckets.csv")[-1]
    with (out / "buckets.csv").open("a") as file:
        file.write(",".join(orphan.values()) + "\n")
    found = run_bench(suite, out, device="cpu", only=ONLY)
    assert (found["n_before"], found["n_made"], found["n_left"]) == (9, 27, 0)
    for name in FILES:
        assert untimed(out / name) == untimed(whole / name), name
    for path in sorted((whole / "per_user").iterdir()):
        assert (out / "per_user" / path.name).read_bytes() == path.read_bytes()
    before = {p: p.read_bytes() for p in out.glob("*.csv")}
    again = run_bench(suite, out, device="cpu", only=ONLY)
    assert again["n_made"] == 0 and again["means"] == found["means"]
    assert {p: p.read_bytes() for p in out.glob("*.csv")} == before


def test_a_row_says_what_ran(whole):
    rows = read_rows(whole / "runs.csv")
    assert tuple(rows[0]) == RUN_COLUMNS
    assert {row["family"] for row in rows} == {"baseline", "scratch", "transfer"}
    for row in rows:
        assert 0 <= float(row["ndcg@20"]) <= 1 and row["device"] == "cpu" and row["versions"]
        assert bool(row["recall@20_cold"]) == (row["scenario"] == "cold-items")
        assert bool(row["source"]) == (row["family"] == "transfer")
        assert bool(row["best_value"]) == (row["arm"] in ("scratch", "heads"))
        trained = int(row["parameters_trained"])
        assert (trained > 0) == (row["arm"] in ("scratch", "heads")) == (int(row["steps"]) > 0)
        assert (float(row["seconds_pretrain"]) > 0) == (row["family"] == "transfer")
    for scenario, n in (("main", 1), ("cold-items", 1), ("cold-users", 1)):
        # What is tested depends neither on the seed nor on the fraction nor on the arm.
        tests = {row["n_test"] for row in rows if row["scenario"] == scenario}
        assert len(tests) == n
    cells = defaultdict(set)
    for row in rows:
        cells[row["scenario"], row["fraction"], row["seed"]].add(row["split_sha256"])
    assert all(len(found) == 1 for found in cells.values())


def test_the_split_is_that_of_the_package(home, whole):
    log = read_interactions(home / "shop.csv")
    split = make_split(log.users, log.n_users, fraction=0.5, seed=1)
    digest = split.sha256(log.user_ids[log.users], log.item_ids[log.items])
    rows = [r for r in read_rows(whole / "runs.csv") if r["scenario"] == "main"]
    found = {r["split_sha256"] for r in rows if (r["fraction"], r["seed"]) == ("0.5", "1")}
    assert found == {digest}


def test_per_user_values_make_the_metrics_and_the_buckets(whole):
    buckets = read_rows(whole / "buckets.csv")
    for row in read_rows(whole / "runs.csv"):
        with np.load(whole / "per_user" / f"{row['run']}.npz", allow_pickle=False) as file:
            values, activity = file["ndcg@20"], file["activity"]
            assert values.dtype == np.float32 and len(file["users"]) == int(row["n_test_users"])
        assert values.mean() == pytest.approx(float(row["ndcg@20"]), abs=1e-5)
        assert int((activity == 0).sum()) == int(row["n_test_users_without_history"])
        own = [b for b in buckets if b["run"] == row["run"] and b["by"] == "user-activity"]
        assert sum(int(b["n"]) for b in own) == len(values)
        for bucket in own:
            if bucket["bucket"] == "1-4":
                some = values[(activity >= 1) & (activity <= 4)]
                assert some.mean() == pytest.approx(float(bucket["ndcg@20"]), abs=1e-5)


def test_cold_users_are_served_from_one_to_five_interactions(whole):
    rows = [r for r in read_rows(whole / "runs.csv") if r["scenario"] == "cold-users"]
    for row in rows:
        with np.load(whole / "per_user" / f"{row['run']}.npz") as file:
            assert 1 <= file["activity"].min() <= file["activity"].max() <= 5


def test_every_tuned_arm_has_the_same_number_of_trials_and_the_best_is_used(whole):
    trials = read_rows(whole / "trials.csv")
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in trials:
        groups[row["arm"], row["fraction"]].append(row)
    assert set(groups) == {(a, f) for a in ("scratch", "heads") for f in ("0.5", "1")}
    for (arm, fraction), rows in groups.items():
        assert [row["trial"] for row in rows] == ["0", "1"] and rows[0]["settings"] == "{}"
        assert {row["source"] for row in rows} == {"books" if arm == "heads" else ""}
        best = max(rows, key=lambda row: (float(row["value"]), row["trial"] == "0"))
        used = {
            row["settings"]
            for row in read_rows(whole / "runs.csv")
            if (row["arm"], row["fraction"]) == (arm, fraction)
        }
        assert used == {best["settings"]}


def test_beyond_the_matrix_only_the_source_that_validates_best_runs(whole):
    rows = read_rows(whole / "runs.csv")
    matrix = [r for r in rows if r["fraction"] == "0.5" and r["best_value"] and r["source"]]
    sums: dict[str, float] = defaultdict(float)
    for row in matrix:
        sums[row["source"]] += float(row["best_value"])
    assert set(sums) == {"books", "books+films"}
    rest = {r["source"] for r in rows if r["fraction"] == "1" and r["source"]}
    assert rest == {min(sums, key=lambda s: sums[s])}


def test_a_difference_is_the_paired_bootstrap_of_seed_means(whole):
    rows = read_rows(whole / "runs.csv")

    def values(arm: str) -> np.ndarray:
        runs = [
            r["run"] for r in rows if (r["scenario"], r["fraction"], r["arm"]) == ("main", "1", arm)
        ]
        assert len(runs) == 2
        tables = [np.load(whole / "per_user" / f"{run}.npz")["ndcg@20"] for run in runs]
        return np.mean([t.astype(np.float64) for t in tables], axis=0)

    expected = paired_bootstrap(
        values("heads"), values("popularity"), seed=derive_seed(0, "main", "shop", "1")
    )
    (found,) = [
        row
        for row in read_rows(whole / "differences.csv")
        if (row["scenario"], row["fraction"], row["arm"]) == ("main", "1", "heads")
        and (row["metric"], row["bucket"]) == ("ndcg@20", "all")
        and row["family"].startswith("main: against popularity,")
    ]
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5, abs=1e-9), name
    assert found["against"] == "popularity" and found["chosen"] == "yes"


def test_cold_items_are_compared_among_themselves_too(whole):
    rows = [r for r in read_rows(whole / "differences.csv") if r["bucket"] == "all"]
    metrics = {name: {r["metric"] for r in rows if r["scenario"] == name} for name in SCENARIOS}
    assert metrics["main"] == metrics["cold-users"] == {"ndcg@20", "recall@20"}
    assert metrics["cold-items"] == {"ndcg@20", "recall@20", "recall@20_cold"}


def test_curves_have_a_row_per_evaluation_with_the_seconds_so_far(whole):
    curves = defaultdict(list)
    for row in read_rows(whole / "curves.csv"):
        curves[row["run"]].append(row)
    trained = {r["run"] for r in read_rows(whole / "runs.csv") if int(r["steps"])}
    assert set(curves) == trained
    for rows in curves.values():
        assert [(r["stage"], r["step"]) for r in rows[:3]] == [("1", "0"), ("1", "2"), ("1", "4")]
        seconds = [float(r["seconds"]) for r in rows]
        assert seconds == sorted(seconds) and {r["stage"] for r in rows} == {"1", "2"}


def test_other_settings_make_new_runs_and_the_old_rows_stay(home, tmp_path):
    out, only = tmp_path / "out", ("target=shop,arm=popularity,scenario=main",)
    suite = load_suite(home / "suite.toml")
    assert run_bench(suite, out, device="cpu", only=only)["n_made"] == 4
    more = suite.model_copy(update={"seeds": (0, 1, 2)})
    assert run_bench(more, out, device="cpu", only=only)["n_made"] == 2
    other = more.model_copy(update={"transfer": TransferConfig(test=0.3)})
    found = run_bench(other, out, device="cpu", only=only)
    assert found["n_made"] == 6 and len(read_rows(out / "runs.csv")) == 12
    assert sum(row["seeds"] for row in found["means"]) == 6  # of the suite as it is now


def test_without_item_text_what_reads_it_is_left_out_and_said(home, tmp_path):
    lines: list[str] = []
    found = run_bench(
        load_suite(home / "suite.toml"),
        tmp_path / "out",
        device="cpu",
        only=("target=kiosk", "scenario=main,fraction=0.5,seed=0,source=|books"),
        say=lambda *more: lines.extend(more),
    )
    arms = [row["arm"] for row in read_rows(tmp_path / "out" / "runs.csv")]
    assert arms == ["popularity", "scratch", "zero-shot", "heads"]
    assert found["left_out"] == [
        "kiosk: no item text for raw-text",
        "kiosk: no item text for shuffled-text",
    ]
    assert any("no item text for raw-text" in line for line in lines) and not found["n_left"]


def test_the_command_stops_at_the_limit_and_prints_one_object(home, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = home / "suite.toml"
    code, out, err = run("bench", suite, "--limit-minutes", 0, "--device", "cpu", "--json")
    report = json.loads(out)
    assert code == 0 and report["stopped"] and report["n_made"] == 0
    # 12 of the matrix and of kiosk 10; 3 x 2 seeds without a source; the rest waits for the best.
    assert report["n_left"] > 0 and report["n_waiting"] > 0 and "stopped at the limit" in err
    assert Path("runs/bench/tiny/runs.csv").is_file()
    code, out, _ = run(
        "bench", suite, "--only", "target=shop,arm=popularity,scenario=main", "--json"
    )
    report = json.loads(out)
    assert code == 0 and report["n_made"] == 4 and len(report["means"]) == 2


def test_the_resolved_settings_are_a_suite_with_the_same_runs(home, whole):
    again = load_suite(whole / "suite.toml")
    found = run_bench(again, whole, device="cpu", only=ONLY)
    assert found["n_made"] == 0 and found["n_left"] == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds =", "seed =", ["'seed' is not a known setting", "did you mean 'seeds'"]),
        ("n_trials", "n_trails", ["tuning.n_trails", "'n_trials'"]),
        ("min_users", "min_user", ["encoder.lightgcn", "'min_users'"]),
        ('"heads"', '"head"', ["'head' is not a known arm", "'heads'"]),
        ('"shop", "kiosk"]', '"shop", "kisk"]', ["'kisk' is not a known data set", "'kiosk'"]),
        ('["lightgcn"]', '["lightgnc"]', ["'lightgnc'", "did you mean 'lightgcn'"]),
        ("matrix = [0.5]", "matrix = [0.4]", ["matrix", "0.4"]),
        ("seeds = [0, 1]", "seeds = [0, 0]", ["seeds", "twice"]),
        ('"shop", "kiosk"]', '"books"]', ["books has no source left", "its own source"]),
        ("[tuning]", "[tuning", ["not a readable TOML"]),
        ('"heads"', '"final:9"', ["final:9", "final:1 to final:2"]),
        ("shop.csv", "nowhere.csv", ["nowhere.csv"]),
    ],
)
def test_a_wrong_suite_is_one_line(home, tmp_path, run, monkeypatch, old, new, words):
    monkeypatch.chdir(home)
    text = (home / "suite.toml").read_text()
    assert old in text
    wrong = home / "wrong.toml"
    wrong.write_text(text.replace(old, new))
    code, out, err = run("bench", wrong, "--out", tmp_path / "out", "--device", "cpu", "--json")
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    for word in words:
        assert word in err
    if "nowhere" not in new:
        assert not list(tmp_path.glob("out/*.csv"))


def test_wrong_filters_and_folders_are_one_line(home, tmp_path):
    suite = load_suite(home / "suite.toml")
    for only, words in (("tarket=shop", "KEY of"), ("target=shp", "'shp' is not in the suite")):
        with pytest.raises(ConfigError, match=words):
            run_bench(suite, tmp_path / "out", device="cpu", only=(only,))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "runs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"runs\.csv.*columns"):
        run_bench(suite, tmp_path / "other", device="cpu")


def test_a_target_under_another_name_is_no_source(home, tmp_path):
    text = (home / "suite.toml").read_text().replace('"books.csv"', '"shop.csv"')
    (home / "same.toml").write_text(text)
    with pytest.raises(ConfigError, match="target shop in its own source books"):
        run_bench(
            load_suite(home / "same.toml"),
            tmp_path / "out",
            device="cpu",
            only=("arm=zero-shot,target=shop",),
        )


READY = """
[encoder.ready]
checkpoint = "{}"

[data]
"""


def test_a_checkpoint_that_is_there_is_measured_as_it_is(home, whole, tmp_path):
    """The rows of the suite that pretrained it, without its sources; never on one of them."""
    (folder,) = (whole / "checkpoints").glob("lightgcn.books.*")
    text = (home / "suite.toml").read_text().replace('["lightgcn"]', '["ready"]')
    start, end = text.index("[encoder.lightgcn.pretrain]"), text.index("[data]\n")
    text = text[:start] + READY.format(folder).lstrip() + text[end + len("[data]\n") :]
    text = text.replace('sources = ["books", ["books", "films"]]', "sources = []")
    path = home / "ready.toml"
    path.write_text(text)
    suite = load_suite(path)
    only = ("target=shop,fraction=0.5,seed=0,scenario=main,arm=scratch|zero-shot|heads",)
    run_bench(suite, tmp_path / "out", device="cpu", only=only)
    found = {row["arm"]: row for row in read_rows(tmp_path / "out" / "runs.csv")}
    keys = {"target": "shop", "fraction": "0.5", "seed": "0", "scenario": "main"}
    keys |= {"source": "books", "arm": "zero-shot"}  # settings of the others are drawn by name
    (row,) = (r for r in read_rows(whole / "runs.csv") if {k: r[k] for k in keys} == keys)
    assert found["zero-shot"]["ndcg@20"] == row["ndcg@20"]
    assert set(found) == {"scratch", "zero-shot", "heads"}
    assert found["heads"]["source"] == str(folder) and not found["scratch"]["source"]
    again = run_bench(load_suite(tmp_path / "out" / "suite.toml"), tmp_path / "out", only=only)
    assert (again["n_made"], again["n_before"]) == (0, 3)  # the resolved suite is the same one
    for old, new, words in (
        ('targets = ["shop", "kiosk"]', 'targets = ["books"]', "no source left for ready"),
        ('text_model = "made-up"', 'text_model = "other"', "reads texts through made-up"),
        ("sources = []", "sources = []\nstrict = true", "strict drops"),
        ('checkpoint = "', 'revision = "0"\ncheckpoint = "', "expected '0'"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=words):
            load_suite(path)
    path.write_text(text.replace(str(folder), "channels.txt"))
    with pytest.raises(CheckpointError, match="did you mean 'channels.text'"):
        load_suite(path)


def test_strict_pretrains_without_what_the_target_shares(tmp_path):
    write_logs(tmp_path)
    text = (tmp_path / "suite.toml").read_text().replace("seeds =", "strict = true\nseeds =")
    (tmp_path / "strict.toml").write_text(text)
    suite = load_suite(tmp_path / "strict.toml")
    only = ("arm=zero-shot,target=shop,source=books,fraction=0.5,seed=0,scenario=main",)
    # The made-up ids are the same everywhere: u0, u1, ... and i0, i1, ...
    with pytest.raises(DataError, match="source books: found .* interactions, expected at least"):
        run_bench(suite, tmp_path / "out", device="cpu", only=only)
    books = pd.read_csv(tmp_path / "books.csv")
    shared = books.item_id.isin([f"i{i}" for i in range(5)])
    books.user_id = "other " + books.user_id
    books.loc[~shared, "item_id"] = "other " + books.item_id[~shared]
    books.to_csv(tmp_path / "books.csv", index=False)
    (tmp_path / "books.items.csv").write_text("item_id,title\nother i9,SHOP 2!\nother i8,ship\n")
    shop = pd.read_csv(tmp_path / "shop.items.csv").assign(title="war war war king")
    shop.loc[2, "title"] = "Shop 2"
    shop.to_csv(tmp_path / "shop.items.csv", index=False)
    run_bench(suite, tmp_path / "new", device="cpu", only=only)
    (folder,) = (tmp_path / "new" / "checkpoints").iterdir()
    (source,) = json.loads((folder / "training.json").read_text())["sources"]
    left = books[~shared & (books.item_id != "other i9")]
    assert source["n_interactions"] == len(left) and ".without.shop." in folder.name
    (row,) = read_rows(tmp_path / "new" / "overlap.csv")
    assert (row["users"], row["items"], row["texts"]) == ("0", "5", "1")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="Linux only")
def test_peak_memory_is_that_of_the_run():
    before = np.ones(30_000_000)
    high = peak_memory_mb()
    del before
    reset_peak_memory()
    assert peak_memory_mb() < high - 150


def test_a_column_that_is_not_there_says_where_a_suite_names_it(home, tmp_path, run):
    text = (home / "suite.toml").read_text()
    wrong = home / "columns.toml"
    wrong.write_text(text.replace('"shop.csv"', '"shop.csv", user_column = "Kunde"'))
    code, _, err = run("bench", wrong, "--out", tmp_path / "out", "--device", "cpu", "--json")
    assert code == 2 and "'Kunde'" in err and "user_column = ... and so on under [data.shop]" in err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_memory_that_the_allocator_keeps_is_not_the_next_runs():
    pieces = [np.ones(10_000) for _ in range(4_000)]
    above = [np.ones(100) for _ in range(2_000)]  # the heap cannot shrink below these by itself
    high = peak_memory_mb()
    del pieces
    reset_peak_memory()
    assert peak_memory_mb() < high - 200 and len(above) == 2_000
