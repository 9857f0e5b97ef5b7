"""metrics.jsonl: one JSON object a line, the only record of a run; console, report and plots are read from it."""

import json
import math
import os
import time
from pathlib import Path

from bertqa.errors import UserError


class Journal:
    """Appends events to metrics.jsonl. With no path (ranks other than the first) it writes nothing."""

    def __init__(self, path: Path | None, keep_bytes: int | None = None):
        """Open for appending; `keep_bytes` cuts off what an interrupted run wrote behind its last checkpoint."""
        self.path, self.file = path, None
        if path is not None:
            if keep_bytes is not None and path.exists():
                os.truncate(path, min(keep_bytes, path.stat().st_size))
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)

    def write(self, event: str, **fields) -> dict:
        """Add one line {"event", "time", fields...}; numbers that JSON does not know (NaN, infinity) become strings.

        Raises:
            UserError: where the disk is full.
        """
        record = {"event": event, "time": round(time.time(), 3)}
        record |= {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in fields.items()
        }
        if self.file:
            line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
            try:
                while line:
                    line = line[self.file.write(line) :]
            except OSError as error:
                raise UserError(
                    f"{self.path}: could not be written ({error}); make room, then go on from the last "
                    "checkpoint with --resume"
                ) from None
        return record

    @property
    def size(self) -> int:
        """Bytes written so far, all of them on the disk."""
        if not self.file:
            return 0
        os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        """Close the file; writing later is an error."""
        if self.file:
            self.file.close()
