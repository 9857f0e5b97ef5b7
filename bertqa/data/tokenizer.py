"""Text to WordPiece ids and character offsets, with a model folder's own vocabulary and casing."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from bertqa.console import progress_bar
from bertqa.data.tokens import Tokens, running_sum, whole_characters
from bertqa.errors import UserError, show
from bertqa.files import read_object

TEXTS_A_CALL = 256
"""Texts handed to the tokenizer at once: enough for its threads, few enough for a live progress bar."""

WORDS_A_LINE = 64
"""Distinct words that go to the tokenizer as one text: a text for each would cost more than its tokens."""


class WordPiece:
    """The tokenizer of a model folder.

    It is read from the folder's own tokenizer.json, or from vocab.txt with tokenizer_config.json,
    so casing is the checkpoint's and never a default.
    """

    def __init__(self, backend, folder: Path):
        self.backend = backend
        self.folder = folder
        # The library's own windows change between versions; ours are in windows.py.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.vocab_size = self.backend.get_vocab_size()
        self.cls_id = self._special("[CLS]")
        self.sep_id = self._special("[SEP]")
        # Without it the first unknown word would be an error of the library's.
        self._special(getattr(backend.model, "unk_token", "[UNK]"))
        self.word_by_word = words_are_independent(backend)

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
        """Tokenise texts; a progress bar of this name is shown where `progress` is given.

        A text's tokens are those that it has by itself, whatever else is in the call. Their offsets
        never lie inside a character (characters.py).
        """
        if self.word_by_word:
            tokens = self._encode_by_words(texts, progress)
        else:
            tokens = self._encode_texts(texts, progress)
        return whole_characters(tokens, texts)

    def _encode_by_words(self, texts: Sequence[str], progress: str | None) -> Tokens:
        """Tokenise each distinct word once: a data set has few of them.

        Such a word may still be a whole paragraph of a language without spaces.

        Example, with a token for each letter:  "ab c ab"  and  "c":
            words    0 1 0 | 1        ab is word 0, c is word 1
            table    ab: a b   c: c   the distinct words tokenised
            tokens   a b c a b | c
            shift    0 0 3 5 5 | 0    where the token's word begins in its text
        """
        known: dict[str, int] = {}  # a distinct word -> its number
        words: list[int] = []
        counts: list[int] = []
        for text in texts:
            # Two blanks in a row have an empty word between them, which has no tokens and takes up its blank.
            parts = text.split(" ")
            words += [known.setdefault(part, len(known)) for part in parts]
            counts.append(len(parts))
        table = self._encode_words(list(known), progress)  # one row a distinct word

        word = np.array(words, np.int64)  # (w,) over all texts
        sizes = np.array([len(part) + 1 for part in known], np.int64)  # with the space behind it
        # With all texts on one line, the words of the example begin at 0 3 5 8, and the line ends at 10.
        begins = running_sum(sizes[word])  # (w+1,)
        text_rows = running_sum(counts)  # (R+1,) text r owns words text_rows[r] : text_rows[r+1]
        text_begins = np.repeat(begins[text_rows[:-1]], counts)  # (w,) where the word's text begins
        shift = begins[:-1] - text_begins  # (w,) where the word begins in its text

        # Each word's tokens are copied from its row of the table: from there on, as many as it has.
        tokens = table.counts[word]  # (w,)
        rows = running_sum(tokens)  # (w+1,)
        source = np.arange(rows[-1]) + np.repeat(table.rows[word] - rows[:-1], tokens)  # (T,)
        shift = np.repeat(shift, tokens).astype(np.int32)  # (T,)
        return Tokens(
            ids=table.ids[source],
            starts=table.starts[source] + shift,
            ends=table.ends[source] + shift,
            rows=rows[text_rows],
        )

    def _encode_words(self, words: list[str], progress: str | None) -> Tokens:
        """A row for each word. They are tokenised as lines of words and told apart by their offsets.

        Example:  "kl", "a"  is the line  "kl a":
            tokens   k 0-1   ##l 1-2   a 3-4
            begins   0 3               where words begin on the line
            word     0 0 1             the last word that begins at the token's start or before
            offsets  0-1   1-2   0-1   within the word
        """
        texts = []
        for i in range(0, len(words), WORDS_A_LINE):
            texts.append(" ".join(words[i : i + WORDS_A_LINE]))
        lines = self._encode_texts(texts, progress)
        # Lines are laid one behind the other as if a blank stood between them, for so words are counted.
        begins = running_sum([len(word) + 1 for word in words])
        line_begins = np.repeat(begins[:-1:WORDS_A_LINE], lines.counts)  # (T,)
        word = np.searchsorted(begins, lines.starts + line_begins, side="right") - 1  # (T,)
        inside = (begins[word] - line_begins).astype(np.int32)
        rows = running_sum(np.bincount(word, minlength=len(words)))
        return Tokens(lines.ids, lines.starts - inside, lines.ends - inside, rows)

    def _encode_texts(self, texts: Sequence[str], progress: str | None) -> Tokens:
        """Tokenise texts as they are, on all cores."""
        flat = chain.from_iterable
        counts: list[int] = []
        ids = [np.zeros(0, np.int32)]  # for no texts, of which nothing could be joined
        spans = [np.zeros(0, np.int32)]
        for chunk in _chunks(texts, progress):
            encodings = self.backend.encode_batch(
                [_legal_utf8(text) for text in chunk], add_special_tokens=False
            )
            counts += map(len, encodings)
            # One pass over a chunk: an array for each text would cost more than the numbers in it.
            ids.append(np.fromiter(flat(one.ids for one in encodings), np.int32))
            spans.append(np.fromiter(flat(flat(one.offsets for one in encodings)), np.int32))
        starts_ends = np.concatenate(spans)  # (2T,) start, end, start, ...
        return Tokens(
            ids=np.concatenate(ids),
            starts=starts_ends[0::2].copy(),
            ends=starts_ends[1::2].copy(),
            rows=running_sum(counts),
        )


def words_are_independent(backend) -> bool:
    """Whether what stands between spaces is tokenised the same whatever stands around it, as by BERT's own steps.

    Added tokens are looked for before them, and may hold a space ("new york") or take the blanks beside them.
    """
    steps = (type(backend.normalizer).__name__, type(backend.pre_tokenizer).__name__)
    if steps != ("BertNormalizer", "BertPreTokenizer"):
        return False
    for token in backend.get_added_tokens_decoder().values():
        normal = backend.normalizer.normalize_str(token.content)  # 東京 becomes two words here
        if token.lstrip or token.rstrip or any(map(str.isspace, token.content + normal)):
            return False
    return True


def _backend_of(folder: Path):
    """The library's tokenizer of a model folder."""
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
    """The text with a stand-in for lone surrogates: they are Python characters, but not legal UTF-8."""
    if text.isascii():
        return text
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _chunks(texts: Sequence[str], progress: str | None) -> Iterable[Sequence[str]]:
    """The texts in pieces for the tokenizer, counted on a progress bar of this name."""
    kind = {"desc": progress, "unit": " texts", "leave": False, "shown": progress is not None}
    with progress_bar(total=len(texts), **kind) as bar:
        for i in range(0, len(texts), TEXTS_A_CALL):
            chunk = texts[i : i + TEXTS_A_CALL]
            yield chunk
            bar.update(len(chunk))


def vocabulary_difference(theirs: WordPiece, ours: WordPiece) -> str:
    """How another model's vocabulary, special tokens among it, differs from ours; "" where it is the same."""
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
