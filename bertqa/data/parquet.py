"""Parquet files as records: what the Hub has of most data sets. Needs the optional package pyarrow."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from bertqa.errors import UserError

PARQUET = b"PAR1"
"""How such a file begins."""

ROWS = 1024
"""Read at a time."""


def parquet_records(
    file: Path | BinaryIO, tell_share: Callable[[float], None] = lambda share: None
) -> Iterator[tuple[str, dict]]:
    """-> "row 3", counted from 0, and its columns as Python values; a list or struct column becomes a list or object.

    `tell_share` is told how much of the file is out, 0 to 1. Raises UserError, also where pyarrow is missing.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            "is a Parquet file, which needs the package pyarrow: pip install 'bertqa[parquet]'; or save it as JSONL"
        ) from None
    try:
        number = 0
        table = parquet.ParquetFile(file)
        for batch in table.iter_batches(ROWS):
            tell_share((number + batch.num_rows) / table.metadata.num_rows)
            for row in batch.to_pylist():
                yield f"row {number}", row
                number += 1
    except (ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"damaged: not a Parquet file that pyarrow can read ({why})") from None
