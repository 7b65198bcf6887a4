"""The registry of data sets: name -> addresses, checksums, licence, citation, parser. No data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from gnnrec import parsers
from gnnrec.errors import ConfigError
from gnnrec.parsers import Tables


@dataclass(frozen=True)
class UserTexts:
    """What users of a set wrote, in a file of its own that is read only when it is asked for.

    Attributes:
        column: What it is called there, and in the log: tag, review.
        url: As in `DatasetSpec.urls`.
        file: Its name.
        sha256: Of the file.
        loader: The file -> rows of user_id, item_id and the column, in the order they were written.
    """

    column: str
    url: str
    file: str
    sha256: str
    loader: Callable[[Path], pd.DataFrame] = field(repr=False)


@dataclass(frozen=True)
class DatasetSpec:
    """What the registry knows about a data set.

    Attributes:
        name: Name in the registry.
        title: Full name.
        urls: File name -> official address. An address that ends in .zip is an archive with the
            file under its folder's name; "" where the published form has to be converted first.
        files: File name -> sha256, or None where nobody has computed it yet: 'unverified'.
        table_sha256: sha256 of the log as `gnnrec.parsers.canonical_tsv` writes it.
        licence: Short name of the licence.
        licence_note: What it means for a user of the set.
        citation: The publication to cite.
        homepage: Where the publishers describe it.
        has_text: Whether items have text.
        has_time: Whether interactions have timestamps.
        folder: Subfolder of a mirror, and of the cache.
        loader: Folder of files -> tables.
        user_texts: What users wrote, if the set has it.
    """

    name: str
    title: str
    urls: dict[str, str]
    files: dict[str, str | None]
    table_sha256: str
    licence: str
    licence_note: str
    citation: str
    homepage: str
    has_text: bool
    has_time: bool
    folder: str
    loader: Callable[[Path], Tables] = field(repr=False)
    user_texts: UserTexts | None = None


_MOVIELENS_CITATION = (
    "F. M. Harper, J. A. Konstan. The MovieLens Datasets: History and Context. "
    "ACM TiiS 5(4), 2015. doi:10.1145/2827872"
)
_LIGHTGCN_CITATION = (
    "X. He et al. LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation. "
    "SIGIR 2020. doi:10.1145/3397271.3401063"
)
_GROUPLENS = "https://files.grouplens.org/datasets/movielens/"
_TWEETINGS = "https://raw.githubusercontent.com/sidooms/MovieTweetings/master/snapshots/100K/"

_SPECS = (
    DatasetSpec(
        name="ml-100k",
        title="MovieLens 100K, keyed by title",
        urls={"ml-100k.zip": _GROUPLENS + "ml-100k.zip"},
        files={"ml-100k.zip": None},
        table_sha256="cb53eb6885181dbe53abaeb72a5347067c926dc54835afab39d2fb6a2dc9a505",
        homepage="https://grouplens.org/datasets/movielens/100k/",
        has_text=True,
        has_time=True,
        folder="ml-100k",
        loader=parsers.parse_movielens,
        licence="MovieLens research licence",
        licence_note="Research use; no redistribution, no commercial use without permission.",
        citation=_MOVIELENS_CITATION,
    ),
    DatasetSpec(
        name="ml-1m",
        title="MovieLens 1M, keyed by title",
        urls={"ml-1m.zip": _GROUPLENS + "ml-1m.zip"},
        files={"ml-1m.zip": None},
        table_sha256="e58b95e127928ce9076c2ada52dadceb6f227b5a4ac0150d1e1a221b75f7d7c2",
        homepage="https://grouplens.org/datasets/movielens/1m/",
        has_text=True,
        has_time=True,
        folder="ml-1m",
        loader=parsers.parse_movielens,
        licence="MovieLens research licence",
        licence_note="Research use; no redistribution, no commercial use without permission.",
        citation=_MOVIELENS_CITATION,
    ),
    DatasetSpec(
        name="ml-latest-small",
        title="MovieLens latest-small, 2018",
        urls=dict.fromkeys(("ratings.csv", "movies.csv"), _GROUPLENS + "ml-latest-small.zip"),
        files={
            "ratings.csv": "80da8b3393dae325bbba5a31f291a6ba55d8d4f4396de3c456f2c1635b1b70e8",
            "movies.csv": "c47b783f23eb304413307e1bb05335e427737da20ec8d3c0e96335567dd5f3dc",
        },
        table_sha256="2e08db6af28d6d6a7c16f432d2e35a7a54394c40ec97a234286bbf1474365a0c",
        licence="MovieLens licence of 2018",
        licence_note="Non-commercial; redistribution under the same conditions.",
        citation=_MOVIELENS_CITATION,
        homepage="https://grouplens.org/datasets/movielens/latest/",
        has_text=True,
        has_time=True,
        folder="ml-latest-small",
        loader=parsers.parse_ml_latest_small,
        user_texts=UserTexts(
            column="tag",
            url=_GROUPLENS + "ml-latest-small.zip",
            file="tags.csv",
            sha256="68eec00a0820c2faa8863a6df7032f13d5899a4462bce9a97213905297ff3d34",
            loader=parsers.parse_ml_tags,
        ),
    ),
    DatasetSpec(
        name="goodbooks-10k",
        title="goodbooks-10k, first release",
        urls={"ratings.csv.zip": "", "books.csv.zip": ""},
        files={
            "ratings.csv.zip": "f39c7cb62a1d7e6731eb8aa11d7b69ae00d66c1bda9c4d940530cc9e57eebf04",
            "books.csv.zip": "959ccc2f197ab7df01cf2d2e48378288990e3631e64dbbb6d02e88379c2ca9c5",
        },
        table_sha256="f546d9dc4b1dffa255d3b663e694371bde4ca63d5060310722e8856c47b37f81",
        licence="CC BY-SA 4.0",
        licence_note="Attribution; adaptations under the same licence.",
        citation="Z. Zajac. Goodbooks-10k: a new dataset for book recommendations. FastML, 2017.",
        homepage="https://github.com/zygmuntz/goodbooks-10k",
        has_text=True,
        has_time=False,
        folder="goodbooks-10k",
        loader=parsers.parse_goodbooks,
    ),
    DatasetSpec(
        name="movietweetings-100k",
        title="MovieTweetings, snapshot 100K",
        urls={name: _TWEETINGS + name for name in ("ratings.dat", "movies.dat")},
        files={
            "ratings.dat": "c0dd868c2632d10002ebc928ddc5345f33adeaa59eca52c2941c26a2c5e36fd6",
            "movies.dat": "e63fb84bc734e3c574f135634a40d3cbafab22b8f94f5fc0b80f80d1d2076efc",
        },
        table_sha256="98bca07f686af49f7e5283afa22e3669df38e4e7273e22b1138a3ed845cfab6c",
        licence="MIT",
        licence_note="Free use with the copyright notice.",
        citation=(
            "S. Dooms, T. De Pessemier, L. Martens. MovieTweetings: a Movie Rating Dataset "
            "Collected From Twitter. CrowdRec at RecSys 2013."
        ),
        homepage="https://github.com/sidooms/MovieTweetings",
        has_text=True,
        has_time=True,
        folder="movietweetings-100k",
        loader=parsers.parse_movietweetings,
    ),
    DatasetSpec(
        name="ifdb",
        title="Interactive Fiction Database: games played",
        urls={"playedgames.parquet": "", "game_docs.parquet": ""},
        files={
            "playedgames.parquet": (
                "ba72418bb7cbfc33e8a37b7f64a970e3b0783f5eb514d9da05b1c322846cadee"
            ),
            "game_docs.parquet": "82144eb36410d52955843fabae98a4226e73576128fdcec0b05b1f6fcc192570",
        },
        table_sha256="6f65313293c6289aaab2386638104a39ee540eab65564d7a5ce1d6033373981b",
        licence="CC BY 3.0 US",
        licence_note="Attribution to IFDB and its members.",
        citation="IFDB, the Interactive Fiction Database. https://ifdb.org",
        homepage="https://ifdb.org",
        has_text=True,
        has_time=True,
        folder="ifdb",
        loader=parsers.parse_ifdb,
    ),
    DatasetSpec(
        name="online-retail",
        title="UCI Online Retail, 2010-2011",
        urls={"online_retail.parquet": ""},
        files={
            "online_retail.parquet": (
                "cd81e414a4e9f53ba413402f324ff48d1c93abde61625de58ff1a1d93e9daf15"
            )
        },
        table_sha256="7c2cb53e423d24291418afa59a3bae05f525a7cbcdde8f5cb8b9deafa46fbb72",
        licence="CC0",
        licence_note="As published in the R package onlineretail, with the donor's permission.",
        citation=(
            "D. Chen, S. L. Sain, K. Guo. Data mining for the online retail industry. Journal of "
            "Database Marketing 19(3), 2012. doi:10.1057/dbm.2012.17"
        ),
        homepage="https://archive.ics.uci.edu/dataset/352/online+retail",
        has_text=True,
        has_time=True,
        folder="online-retail",
        loader=parsers.parse_online_retail,
    ),
    DatasetSpec(
        name="gowalla",
        title="Gowalla check-ins, LightGCN's split",
        urls={"gowalla_train.npz": "", "gowalla_test.npz": ""},
        files={
            "gowalla_train.npz": "dc494c4f04608a0894d13e5e12201db6522f26098b09ab1994738ff9cd8b2abb",
            "gowalla_test.npz": "dc80ad6472f698392a188b6296ad6165b589a8aeb67c2d8d40bb34ad681546df",
        },
        table_sha256="c215f9855a7f13753e776f948de54fc63e1a065038fbf02d848e1260f15273be",
        has_text=False,
        has_time=False,
        folder="gowalla",
        loader=parsers.parse_lightgcn_split,
        licence="research use",
        licence_note="Published with LightGCN for research; no licence text accompanies it.",
        citation=_LIGHTGCN_CITATION,
        homepage="https://github.com/kuandeng/LightGCN",
    ),
    DatasetSpec(
        name="yelp2018",
        title="Yelp 2018, LightGCN's split",
        urls={"yelp_train.npz": "", "yelp_test.npz": ""},
        files={
            "yelp_train.npz": "ed81a7676153bbffd858cc9e4b9ff53c832189800587d6b60acaad588a25b0a3",
            "yelp_test.npz": "7a310bcd4713828f0315867f1867782943fcfb957005079d39118b8931cde570",
        },
        table_sha256="2fe4a0a57d325959cfcd286b3bd9f247ba7a7553f92e0f89ed22fc4fac8c2607",
        has_text=False,
        has_time=False,
        folder="yelp2018",
        loader=parsers.parse_lightgcn_split,
        licence="research use",
        licence_note="Published with LightGCN for research; no licence text accompanies it.",
        citation=_LIGHTGCN_CITATION,
        homepage="https://github.com/kuandeng/LightGCN",
    ),
)


def list_datasets() -> tuple[DatasetSpec, ...]:
    """Return every registered data set."""
    return _SPECS


def get_spec(name: str) -> DatasetSpec:
    """Return a registered data set by name.

    Raises:
        ConfigError: No set has that name.
    """
    names = [spec.name for spec in _SPECS]
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "take one of these"
        known = ", ".join(names)
        raise ConfigError(f"found the data set {name!r}, expected one of {known}; {hint}")
    return _SPECS[names.index(name)]
