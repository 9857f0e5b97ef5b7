"""metrics.jsonl: one JSON object a line, the only record of a run; console, report and plots are read from it."""

import math
import os
import time
from pathlib import Path

from bertqa.console import say
from bertqa.errors import UserError
from bertqa.files import to_json


class Journal:
    """Appends events to metrics.jsonl. With no path (ranks other than the first) it writes nothing."""

    def __init__(self, path: Path | None, keep_bytes: int | None = None):
        """Open for appending.

        Args:
            keep_bytes: of a run that goes on, how much was written at its checkpoint: what is behind
                that is cut off; what is missing of it is said.
        """
        self.path = path
        self.file = None
        if path is None:
            return
        if keep_bytes is not None:
            self._cut(keep_bytes)
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)

    def _cut(self, keep_bytes: int) -> None:
        there = self.path.stat().st_size if self.path.exists() else 0
        if there > keep_bytes:
            os.truncate(self.path, keep_bytes)
        elif there < keep_bytes:
            say(
                f"warning: {self.path}: {keep_bytes - there:,} bytes of it are lost, so the curves of the "
                "report have a gap; the training itself goes on as it would have"
            )

    def write(self, event: str, **fields) -> dict:
        """Add one line {"event", "time", fields...}; numbers that JSON does not know (NaN, infinity) become strings.

        Raises:
            UserError: where the disk is full.
        """
        record = {"event": event, "time": round(time.time(), 3)}
        for name, value in fields.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            record[name] = value if finite else str(value)
        if self.file:
            self._append((to_json(record) + "\n").encode())
        return record

    def _append(self, line: bytes) -> None:
        try:
            while line:
                written = self.file.write(line)  # fewer than asked for, on a disk that fills up
                line = line[written:]
        except OSError as error:
            raise UserError(
                f"{self.path}: could not be written ({error}); make room, then go on from the last "
                "checkpoint with --resume"
            ) from None

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
