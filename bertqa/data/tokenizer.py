"""Text to WordPiece ids and character offsets, with a model folder's own vocabulary and casing."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from bertqa.errors import UserError

CHUNK = 256
"""Texts handed to the tokenizer at once: enough for its threads, few enough for a live progress bar."""

LINE = 64
"""Distinct words that go to the tokenizer as one text: a text for each would cost more than its tokens."""


@dataclass
class Tokens:
    """R texts as one flat array of T tokens, without special tokens.

    Offsets count Python characters of the raw text, whatever the tokenizer did to it (lower case, accents, controls).
    """

    ids: np.ndarray
    """(T,) int32."""
    starts: np.ndarray
    """(T,) int32, first character of each token in its text."""
    ends: np.ndarray
    """(T,) int32, one past its last character."""
    rows: np.ndarray
    """(R+1,) int64: text r owns tokens rows[r] : rows[r+1]."""

    @property
    def counts(self) -> np.ndarray:
        """(R,) tokens of each text."""
        return np.diff(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all four arrays."""
        return self.ids.nbytes + self.starts.nbytes + self.ends.nbytes + self.rows.nbytes

    def cut(self, most: "int | np.ndarray") -> "Tokens":
        """Every text cut to its first `most` tokens: one number for all, or (R,)."""
        within = np.arange(len(self.ids)) - np.repeat(
            self.rows[:-1], self.counts
        )  # (T,) position in its text
        keep = within < np.repeat(np.broadcast_to(most, self.counts.shape), self.counts)
        rows = np.concatenate([[0], np.minimum(self.counts, most).cumsum()])
        return Tokens(self.ids[keep], self.starts[keep], self.ends[keep], rows)


class WordPiece:
    """The tokenizer of a model folder.

    It is read from the folder's own tokenizer.json, or from vocab.txt with tokenizer_config.json, so casing is the
    checkpoint's and never a default.
    """

    def __init__(self, backend, folder: Path):
        self.backend, self.folder = backend, folder
        self.backend.no_truncation()  # the library's own windows change between versions; ours are in windows.py
        self.backend.no_padding()
        self.vocab_size = self.backend.get_vocab_size()
        self.cls_id, self.sep_id = self._special("[CLS]"), self._special("[SEP]")
        # BERT's own steps treat what stands between spaces by itself; of another normaliser nobody knows.
        steps = type(backend.normalizer).__name__, type(backend.pre_tokenizer).__name__
        self.word_by_word = steps == ("BertNormalizer", "BertPreTokenizer")

    def _special(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise UserError(
                f"{self.folder}: the vocabulary has no {token}; BERT needs one, so this is another kind of "
                "tokenizer or a damaged file"
            )
        return found

    @classmethod
    def load(cls, folder: str | Path) -> "WordPiece":
        """The tokenizer of a model folder. Raises UserError where the folder has none, or not a readable one."""
        from tokenizers import BertWordPieceTokenizer, Tokenizer

        folder = Path(folder)
        ready, vocabulary, settings = (
            folder / name for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
        )
        try:
            if ready.exists():
                return cls(Tokenizer.from_file(str(ready)), folder)
            if vocabulary.exists():
                config = (
                    json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
                )
                if "do_lower_case" not in config:
                    raise UserError(
                        f"{folder}: vocab.txt alone does not say whether the model is cased; put "
                        'tokenizer_config.json with "do_lower_case": true or false beside it'
                    )
                built = BertWordPieceTokenizer(
                    str(vocabulary),
                    lowercase=config["do_lower_case"],
                    strip_accents=config.get("strip_accents"),
                    handle_chinese_chars=config.get("tokenize_chinese_chars", True),
                )
                return cls(built._tokenizer, folder)
        except UserError:
            raise
        except Exception as error:  # the library raises plain Exception for a damaged file
            raise UserError(
                f"{folder}: cannot read the tokenizer ({error}); copy its files anew"
            ) from None
        raise UserError(
            f"{folder}: neither tokenizer.json nor vocab.txt is there; is it a model folder? "
            "tools/convert_weights.py makes one"
        )

    def encode(self, texts: Sequence[str], progress: str | None = None) -> Tokens:
        """Tokenise texts; a progress bar of this name is shown where `progress` is given.

        Each distinct word is tokenised once: cut at spaces, words do not see each other in BERT's tokenizer, and a data
        set has few of them. Such a word may still be a whole paragraph of a language without spaces.
        """
        if not self.word_by_word:
            return self._encode_texts(texts, progress)
        known: dict[str, int] = {}
        words, counts = [], []
        for text in texts:
            parts = text.split(" ")
            words += [known.setdefault(part, len(known)) for part in parts]
            counts.append(len(parts))
        table = self._encode_words(list(known), progress)  # one row a distinct word
        word = np.array(words, np.int64)  # (w,) over all texts
        sizes = np.array([len(part) + 1 for part in known], np.int64)  # with the space behind it
        begins, heads = _running(sizes[word]), _running(counts)  # (w+1,), (R+1,)
        shift = begins[:-1] - np.repeat(begins[heads[:-1]], counts)  # (w,) its place in its text
        tokens = table.counts[word]
        rows = _running(tokens)  # (w+1,)
        source = np.arange(rows[-1]) + np.repeat(table.rows[word] - rows[:-1], tokens)  # (T,)
        shift = np.repeat(shift, tokens).astype(np.int32)
        return Tokens(
            table.ids[source], table.starts[source] + shift, table.ends[source] + shift, rows[heads]
        )

    def _encode_words(self, words: list[str], progress: str | None) -> Tokens:
        """A row for each word. They are tokenised as lines of `LINE` words and told apart by their offsets."""
        lines = self._encode_texts(
            [" ".join(words[i : i + LINE]) for i in range(0, len(words), LINE)], progress
        )
        begins = _running([len(word) + 1 for word in words])
        shift = np.repeat(begins[:-1:LINE], lines.counts)  # (T,)
        word = np.searchsorted(begins, lines.starts + shift, side="right") - 1
        inside = (begins[word] - shift).astype(np.int32)
        return Tokens(
            lines.ids,
            lines.starts - inside,
            lines.ends - inside,
            _running(np.bincount(word, minlength=len(words))),
        )

    def _encode_texts(self, texts: Sequence[str], progress: str | None) -> Tokens:
        """Tokenise texts as they are, on all cores."""
        flat, counts = chain.from_iterable, []
        ids, spans = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
        for chunk in _chunks(texts, progress):
            # A lone surrogate is a legal Python character but not legal UTF-8: a stand-in keeps the offsets.
            clean = [
                text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)
                for text in chunk
            ]
            encodings = self.backend.encode_batch(clean, add_special_tokens=False)
            counts += map(len, encodings)
            # One pass over a chunk: an array for each text would cost more than the numbers in it.
            ids.append(np.fromiter(flat(one.ids for one in encodings), np.int32))
            spans.append(np.fromiter(flat(flat(one.offsets for one in encodings)), np.int32))
        starts_ends = np.concatenate(spans)  # (2T,) start, end, start, ...
        return Tokens(
            np.concatenate(ids),
            starts_ends[0::2].copy(),
            starts_ends[1::2].copy(),
            _running(counts),
        )


def _running(counts: Sequence[int]) -> np.ndarray:
    """(n+1,) int64: the sum of all before each, and of all."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def _chunks(texts: Sequence[str], progress: str | None) -> Iterable[Sequence[str]]:
    if progress is None:
        yield from (texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK))
        return
    from tqdm import tqdm

    with tqdm(
        total=len(texts),
        desc=progress,
        unit=" texts",
        leave=False,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 30,
    ) as bar:
        for i in range(0, len(texts), CHUNK):
            yield texts[i : i + CHUNK]
            bar.update(min(CHUNK, len(texts) - i))
