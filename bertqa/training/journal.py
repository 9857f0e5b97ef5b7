"""metrics.jsonl: one JSON object a line, the only record of a run; console, report and plots are read from it."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from bertqa.errors import UserError


class Journal:
    """Appends events to metrics.jsonl. With no path (ranks other than the first) it writes nothing."""

    def __init__(self, path: Path | None, keep_bytes: int | None = None):
        """Open for appending; `keep_bytes` cuts off what an interrupted run wrote behind its last checkpoint."""
        self.file = None
        if path is not None:
            if keep_bytes is not None and path.exists():
                os.truncate(path, min(keep_bytes, path.stat().st_size))
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)

    def write(self, event: str, **fields) -> dict:
        """Add one line {"event", "time", fields...}; numbers that JSON does not know (NaN, infinity) become strings."""
        record = {"event": event, "time": round(time.time(), 3)}
        record |= {key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
                   for key, value in fields.items()}
        if self.file:
            self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.file.flush()
        return record

    @property
    def size(self) -> int:
        """Bytes written so far, all of them on their way to the disk."""
        return os.fstat(self.file.fileno()).st_size if self.file else 0

    def close(self) -> None:
        """Close the file; writing later is an error."""
        if self.file:
            self.file.close()


def read_journal(path: str | Path) -> Iterator[dict]:
    """The events of a metrics.jsonl, in order. A last line that was cut off in the middle is left out.

    Raises:
        UserError: where the file is missing or another line is not JSON.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no journal; is this the folder of a run?")
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if line:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                if number < len(lines):
                    raise UserError(f"{path}: line {number} is not JSON; the file is damaged") from None
