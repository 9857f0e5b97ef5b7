"""Tokenise text into WordPiece ids and character offsets, with a model folder's own vocabulary and casing."""

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from bertqa.console import progress_bar
from bertqa.data.tokens import Tokens, running_sum, whole_characters
from bertqa.errors import UserError, show
from bertqa.files import read_object

TEXTS_PER_CALL = 256
"""Texts per call of the library: enough for its threads, few enough for a live progress bar."""

WORDS_PER_LINE = 64
"""Distinct words that are tokenised as one text, because the cost of a call per word would exceed that of its tokens."""


class WordPiece:
    """The tokenizer of a model folder: a `tokenizers.Tokenizer` (`backend`), and the ids of [CLS] and [SEP].

    It is read from the folder's tokenizer.json, or from vocab.txt and tokenizer_config.json, so casing is that of the
    checkpoint and never a default.
    """

    def __init__(self, backend, folder: Path):
        self.backend = backend
        self.folder = folder
        # windows.py truncates; how the library does it differs between its versions.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.vocab_size = self.backend.get_vocab_size()
        self.cls_id = self._special("[CLS]")
        self.sep_id = self._special("[SEP]")
        # Without an unknown token the library fails at the first unknown word: refuse the folder now.
        self._special(getattr(backend.model, "unk_token", "[UNK]"))
        self.word_by_word = words_are_independent(backend)

    def _special(self, token: str) -> int:
        """Return the id of a special token. Raises UserError if the vocabulary does not have it."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise UserError(
                f"{self.folder}: the vocabulary has no {token}; BERT needs one, so this is another kind of "
                "tokenizer or a damaged file"
            )
        return found

    @classmethod
    def load(cls, folder: str | Path) -> "WordPiece":
        """Read the tokenizer of a model folder. Raises UserError if it is missing or cannot be read."""
        folder = Path(folder)
        try:
            return cls(_backend_of(folder), folder)
        except UserError:
            raise
        except Exception as error:  # the library raises plain Exception for a damaged file
            raise UserError(
                f"{folder}: cannot read the tokenizer ({error}); copy its files anew"
            ) from None

    def encode(self, texts: Sequence[str], progress: str | None = None) -> Tokens:
        """Tokenise texts, without special tokens; the tokens of a text do not depend on the other texts.

        Offsets are widened to whole characters (characters.py). `progress` names a progress bar; None shows none.
        """
        if self.word_by_word:
            tokens = self._encode_by_words(texts, progress)
        else:
            tokens = self._encode_texts(texts, progress)
        return whole_characters(tokens, texts)

    def _encode_by_words(self, texts: Sequence[str], progress: str | None) -> Tokens:
        """Tokenise each distinct word once, then copy its tokens to wherever it occurs: data sets repeat their words.

        A word is what is between two spaces, so in a language written without spaces it may be a whole paragraph.

        Example: the texts "ab c ab" and "c", with one token per letter:
            word     0 1 0 | 1        "ab" is word 0, "c" is word 1
            table    ab: a b   c: c   tokens of each distinct word
            tokens   a b c a b | c
            shift    0 0 3 5 5 | 0    offset in its text at which the token's word begins
        """
        row_of: dict[str, int] = {}  # distinct word -> its row in the table
        words: list[int] = []
        counts: list[int] = []
        for text in texts:
            # Two spaces in a row enclose an empty word: it has no tokens, but it counts for the offsets.
            parts = text.split(" ")
            words += [row_of.setdefault(part, len(row_of)) for part in parts]
            counts.append(len(parts))
        table = self._encode_words(list(row_of), progress)

        word = np.array(words, np.int64)  # (w,) table row of every word of every text
        sizes = np.array([len(part) + 1 for part in row_of], np.int64)  # with the space after it
        # Offset of each word if all texts were one line: 0 3 5 8 in the example, and 10 for the end.
        begins = running_sum(sizes[word])  # (w+1,)
        text_rows = running_sum(counts)  # (R+1,) text r owns words text_rows[r] : text_rows[r+1]
        text_begins = np.repeat(begins[text_rows[:-1]], counts)  # (w,) offset of the word's text
        word_shift = begins[:-1] - text_begins  # (w,) offset of the word in its text

        # Word i of the line copies `copied[i]` tokens, from `table.rows[word[i]]` on.
        copied = table.counts[word]  # (w,)
        rows = running_sum(copied)  # (w+1,)
        source = np.arange(rows[-1]) + np.repeat(table.rows[word] - rows[:-1], copied)  # (T,)
        shift = np.repeat(word_shift, copied).astype(np.int32)  # (T,)
        return Tokens(
            ids=table.ids[source],
            starts=table.starts[source] + shift,
            ends=table.ends[source] + shift,
            rows=rows[text_rows],
        )

    def _encode_words(self, words: list[str], progress: str | None) -> Tokens:
        """Tokenise words, one row each: as lines of many words, whose tokens are assigned to words by their offsets.

        Example: the words "kl" and "a" become the line "kl a":
            tokens   k 0-1   ##l 1-2   a 3-4
            begins   0 3               offset of each word on the line
            word     0 0 1             the last word whose offset is not greater than the token's start
            offsets  0-1   1-2   0-1   within the word
        """
        texts = []
        for i in range(0, len(words), WORDS_PER_LINE):
            texts.append(" ".join(words[i : i + WORDS_PER_LINE]))
        lines = self._encode_texts(texts, progress)
        # Offset of each word if all lines were one, with a space between two lines as between two words.
        begins = running_sum([len(word) + 1 for word in words])
        # (T,) offset of each token's line, its word, and the offset of that word on the line.
        line_begins = np.repeat(begins[:-1:WORDS_PER_LINE], lines.counts)
        word = np.searchsorted(begins, lines.starts + line_begins, side="right") - 1
        word_begins = (begins[word] - line_begins).astype(np.int32)
        rows = running_sum(np.bincount(word, minlength=len(words)))
        return Tokens(lines.ids, lines.starts - word_begins, lines.ends - word_begins, rows)

    def _encode_texts(self, texts: Sequence[str], progress: str | None) -> Tokens:
        """Tokenise whole texts with the library, which uses all cores."""
        counts: list[int] = []
        # The empty arrays are there for an empty list of texts: np.concatenate wants at least one.
        ids = [np.zeros(0, np.int32)]
        spans = [np.zeros(0, np.int32)]
        for chunk in _chunks(texts, progress):
            encodings = self.backend.encode_batch(
                [_legal_utf8(text) for text in chunk], add_special_tokens=False
            )
            counts += [len(encoding) for encoding in encodings]
            # One array per chunk: an array for each text would cost more than the numbers in it.
            chunk_ids = chain.from_iterable(encoding.ids for encoding in encodings)
            pairs = chain.from_iterable(encoding.offsets for encoding in encodings)
            ids.append(np.fromiter(chunk_ids, np.int32))
            spans.append(np.fromiter(chain.from_iterable(pairs), np.int32))
        starts_ends = np.concatenate(spans)  # (2T,) start, end, start, ...
        return Tokens(
            ids=np.concatenate(ids),
            starts=starts_ends[0::2].copy(),
            ends=starts_ends[1::2].copy(),
            rows=running_sum(counts),
        )


def words_are_independent(backend) -> bool:
    """Return whether the tokens of a word do not depend on the words around it.

    That holds for BERT's own normalizer and pre-tokenizer, but not if an added token, which the library looks for first,
    contains a space ("new york") or includes the white space beside it.
    """
    if type(backend.normalizer).__name__ != "BertNormalizer":
        return False
    if type(backend.pre_tokenizer).__name__ != "BertPreTokenizer":
        return False
    for token in backend.get_added_tokens_decoder().values():
        # The normalizer may insert spaces: 東京 becomes two words.
        content = token.content + backend.normalizer.normalize_str(token.content)
        if token.lstrip or token.rstrip or re.search(r"\s", content):
            return False
    return True


def _backend_of(folder: Path):
    """Return the `tokenizers.Tokenizer` of a model folder. Raises UserError if its files do not suffice."""
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    ready = folder / "tokenizer.json"
    vocabulary = folder / "vocab.txt"
    settings = folder / "tokenizer_config.json"
    if ready.exists():
        return Tokenizer.from_file(str(ready))
    if not vocabulary.exists():
        raise UserError(
            f"{folder}: neither tokenizer.json nor vocab.txt is there; is it a model folder? "
            "tools/convert_weights.py makes one"
        )
    config = read_object(settings) if settings.exists() else {}
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
    return built._tokenizer


def _legal_utf8(text: str) -> str:
    """Replace lone surrogates, which a str may hold but UTF-8 may not, by U+FFFD; offsets stay the same."""
    if text.isascii():
        return text
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _chunks(texts: Sequence[str], progress: str | None) -> Iterator[Sequence[str]]:
    """Yield TEXTS_PER_CALL texts at a time, and count them on a progress bar if it has a name."""
    look = {"desc": progress, "unit": " texts", "leave": False, "shown": progress is not None}
    with progress_bar(total=len(texts), **look) as bar:
        for i in range(0, len(texts), TEXTS_PER_CALL):
            chunk = texts[i : i + TEXTS_PER_CALL]
            yield chunk
            bar.update(len(chunk))


def vocabulary_difference(theirs: WordPiece, ours: WordPiece) -> str:
    """Describe how another model's vocabulary, special tokens included, differs from ours; "" if they are equal."""
    other = theirs.backend.get_vocab()
    own = ours.backend.get_vocab()
    differ = [token for token in own if other.get(token) != own[token]]
    differ += [token for token in other if token not in own]
    if not differ:
        return ""
    token = differ[0]
    return (
        f"{len(differ):,} tokens differ, for example {show(token)} is {other.get(token, 'unknown')} there and "
        f"{own.get(token, 'unknown')} here"
    )
