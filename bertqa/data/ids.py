"""The names of records in a stream: their own ids, each of which stands once, or their numbers."""

import hashlib

import numpy as np

RECENT = 1 << 16
"""Ids kept in a set before they are sorted into the array."""


class Ids:
    """Ids of record after record. The first record that can be read decides whether they have ids or are numbered."""

    def __init__(self):
        self.own: bool | None = None  # not yet known
        self.count = 0
        self.seen = Seen()

    def of(self, record: object) -> tuple[object, str]:
        """The id of the next record, None where it has none; and what is wrong with it, or ""."""
        number = self.count
        self.count += 1
        if not isinstance(record, dict):
            return number if self.own is False else None, ""
        id = record.get("id")
        if self.own is None:
            self.own = id is not None
        if not self.own and id is None:
            return number, ""
        if not self.own:
            what = "has an id, but the first record has none, so that they are numbered"
            return id, f"{what}; give all of them one"
        if id is None or id == "":
            return None, "has no id, but the first record has one; give all of them one"
        if type(id) not in (str, int):
            return None, f'"id" must be text or a whole number, not {type(id).__name__}'
        if not str(id).strip():
            return None, '"id" is blank; every question needs its own'
        if self.seen.add(str(id)):
            return str(id), "its id was used before; make every id unique"
        return str(id), ""


class Seen:
    """Texts that were seen before, in 8 bytes each: a hundred million ids fit into memory."""

    def __init__(self):
        self.old = np.zeros(0, np.uint64)  # hashes, sorted
        self.recent: set[int] = set()

    def add(self, text: str) -> bool:
        """Whether this text was added before."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "little")
        if value in self.recent or self._is_old(value):
            return True
        self.recent.add(value)
        if len(self.recent) == RECENT:
            new = np.fromiter(self.recent, np.uint64, len(self.recent))
            self.old = np.sort(np.concatenate([self.old, new]))
            self.recent = set()
        return False

    def _is_old(self, value: int) -> bool:
        place = int(np.searchsorted(self.old, np.uint64(value)))
        return place < len(self.old) and int(self.old[place]) == value
