"""Tables of other libraries in and out: pandas, polars, Arrow, and scipy's sparse matrices."""

from __future__ import annotations

import importlib.util
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from gnnrec.errors import ConfigError
from gnnrec.tables import data_error, shown

# A DataFrame of pandas or polars, or a pyarrow Table; none of them but pandas is needed.
Frame: TypeAlias = Any
KINDS = ("pandas", "polars", "pyarrow")


def as_pandas(table: Frame, where: str, matrix: tuple[str, str, str] | None = None) -> pd.DataFrame:
    """Return a table as a pandas DataFrame, itself if it is one.

    Anything is taken that gives itself as an Arrow stream (`__arrow_c_stream__`): DataFrames of
    polars, Tables of pyarrow, relations of duckdb. Categories become their values.

    Args:
        table: One row per interaction or item; for a log also a sparse matrix of scipy, whose rows
            are users and whose columns are items. Their numbers are the ids, the entries the
            weights; a stored zero is no interaction, entries of one place are added up.
        where: Description for messages.
        matrix: Names for the columns that a matrix becomes: user, item, weight. None where a
            matrix has no meaning.

    Raises:
        DataError: It is none of these, or an entry of a matrix is no weight.
    """
    if isinstance(table, pd.DataFrame):
        return table
    if sp.issparse(table) and matrix is not None:
        return _from_matrix(table, matrix)
    if hasattr(table, "__arrow_c_stream__") and not isinstance(table, pd.Series):
        try:
            return _from_arrow(pa.table(table))
        except (pa.ArrowException, TypeError, ValueError) as error:
            found = f"a {type(table).__name__} that is no table ({error})"
            raise data_error(where, found, "a DataFrame", "convert it to pandas") from None
    kinds = "a DataFrame of pandas or polars, or a pyarrow Table"
    if matrix is not None:
        kinds += ", or a scipy sparse matrix"
    cure = "call its collect()" if hasattr(table, "collect") else "convert it"
    raise data_error(where, f"a {type(table).__name__}", kinds, cure)


def _from_arrow(table: pa.Table) -> pd.DataFrame:
    columns = [_readable(column) for column in table.columns]
    # Without metadata, which may speak of an index or of types that only their writer has.
    plain = pa.table(columns, names=table.column_names)
    frame: pd.DataFrame = plain.to_pandas()
    return frame


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column in types that pandas has; polars sends views of strings and categories."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        chunks = [
            chunk.dictionary.cast(_stored(kind.value_type)).take(chunk.indices)
            for chunk in column.chunks
        ]
        return pa.chunked_array(chunks, _stored(kind.value_type))
    return column if _stored(kind) == kind else column.cast(_stored(kind))


def _stored(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_stored(kind.value_type))
    return kind


def _from_matrix(matrix: Any, names: tuple[str, str, str]) -> pd.DataFrame:  # noqa: ANN401
    where = type(matrix).__name__
    if matrix.ndim != 2 or matrix.dtype.kind not in "buif":
        found = f"{matrix.ndim} dimensions of {matrix.dtype}"
        raise data_error(where, found, "users x items of numbers", "convert it")
    coo = sp.coo_array(matrix)
    coo.sum_duplicates()
    weights = coo.data.astype(np.float64)
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        at = int(bad.argmax())
        found = f"{shown(coo.data[at])} at [{coo.row[at]}, {coo.col[at]}]"
        raise data_error(where, found, "a finite weight of at least 0", "correct or remove it")
    kept = weights > 0
    user, item, weight = names
    return pd.DataFrame(
        {
            user: coo.row[kept].astype(np.int64),
            item: coo.col[kept].astype(np.int64),
            weight: weights[kept],
        }
    )


def check_kind(kind: str) -> None:
    """Check that tables can be given in a kind.

    Raises:
        ConfigError: There is no such kind, or its library is missing.
    """
    if kind not in KINDS:
        raise ConfigError(f"output: found {kind!r}, expected {', '.join(KINDS)}")
    if importlib.util.find_spec(kind) is None:
        raise ConfigError(f"output: {kind} is not installed: pip install {kind}")


def as_kind(frame: pd.DataFrame, kind: str) -> Frame:
    """Return a pandas DataFrame as one of `KINDS`, its index left out.

    A column of values of several types, such as ids that a caller mixed, becomes text.
    """
    if kind == "pandas":
        return frame
    plain = frame.copy(deep=False)
    for name in plain:
        if plain[name].dtype == object and plain[name].map(type).nunique() > 1:
            plain[name] = plain[name].map(str)
    table = pa.Table.from_pandas(plain, preserve_index=False).replace_schema_metadata(None)
    if kind == "pyarrow":
        return table
    polars = importlib.import_module("polars")
    return polars.DataFrame(table)
