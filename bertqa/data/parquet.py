"""Parquet files as records: what the Hub has of most data sets. Needs the optional package pyarrow."""

from collections.abc import Iterator

from bertqa.data.sources import STDIN, Source
from bertqa.errors import UserError

ROWS = 1024
"""Read at a time."""


def parquet_records(source: Source) -> Iterator[tuple[str, dict]]:
    """-> "row 3", counted from 0, and its columns as Python values; a list or struct column becomes a list or object."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            "is a Parquet file, which needs the package pyarrow: pip install 'bertqa[parquet]'; or save it as JSONL"
        ) from None
    if source.path == STDIN:
        raise UserError("is Parquet, which cannot be read from a pipe; give the file's name")
    try:
        number = 0
        file = parquet.ParquetFile(source.path)
        for batch in file.iter_batches(ROWS):
            source.share_of_records = (number + batch.num_rows) / file.metadata.num_rows
            for row in batch.to_pylist():
                yield f"row {number}", row
                number += 1
    except (ArrowException, OSError) as error:
        raise UserError(f"damaged: not a Parquet file that pyarrow can read ({error})") from None
