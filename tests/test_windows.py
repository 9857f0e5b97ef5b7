"""Tokenizer offsets, windows, labels and packed batches, against hand-counted cases and real SQuAD."""

import json

import numpy as np
import pytest

from bertqa.data.batches import (
    WindowStore,
    by_length,
    epoch_order,
    padded,
    split_by_tokens,
    split_evenly,
    step_rows,
)
from bertqa.data.characters import beginnings, extends
from bertqa.data.examples import Example, read_examples
from bertqa.data.text_windows import text_windows
from bertqa.data.tokenizer import WordPiece
from bertqa.data.tokens import Tokens, whole_characters
from bertqa.data.windows import build_windows, check_window_settings
from bertqa.errors import UserError

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghij",
    "k",
    "##l",
    "##m",
    "who",
    "?",
    "cafe",
    "東",
    "京",
    "##s",
]


def make_tokenizer(folder, **config) -> WordPiece:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, **config}))
    return WordPiece.load(folder)


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer(tmp_path)


def example(question, context, *answers):
    return Example(
        "q",
        question,
        context,
        answers,
        tuple(context.index(a) if a in context else -1 for a in answers),
    )


def answer_text(windows, examples, row):
    """The text that a window's labels point at, through the character offsets."""
    q = windows.question[row]
    c = windows.question_context[q]
    base = windows.contexts.rows[c] + windows.first[row] - windows.questions.counts[q] - 2
    start = windows.contexts.starts[base + windows.start_label[row]]
    return examples[q].context[start : windows.contexts.ends[base + windows.end_label[row]]]


def test_offsets_are_python_characters_of_the_raw_text(tokenizer):
    texts = [
        "a  b",
        "Café CAFE",
        "東京a",
        "👩‍🔬 a",
        "a\u200bb",
        "a\u0301 b",
        "x",
        "",
        " \t\n",
        "a\ud83d b",
        "\u00a0a\u00a0",
    ]
    tokens = tokenizer.encode(texts)
    for text, begin, end in zip(texts, tokens.rows, tokens.rows[1:], strict=False):
        for a, b in zip(tokens.starts[begin:end], tokens.ends[begin:end], strict=True):
            assert 0 <= a < b <= len(text), (text, a, b)
    spans = [
        [(int(a), int(b)) for a, b in zip(tokens.starts[i:j], tokens.ends[i:j], strict=True)]
        for i, j in zip(tokens.rows, tokens.rows[1:], strict=False)
    ]
    assert spans[0] == [(0, 1), (3, 4)]
    assert spans[1] == [(0, 4), (5, 9)] and set(tokens.ids[tokens.rows[1] : tokens.rows[2]]) == {
        WORDS.index("cafe")
    }
    assert spans[2] == [(0, 1), (1, 2), (2, 3)]
    assert spans[3][-1] == (4, 5)  # three joined code points and a space stand before it
    assert spans[7] == [] == spans[8]
    assert spans[9][-1] == (3, 4)  # a lone surrogate is one character
    assert spans[10] == [(1, 2)]


NASTY = [
    "",
    " ",
    "  ",
    "a b",
    " a  b ",
    "[SEP] a",
    "a[MASK]b [CLS]",
    "a\u0301 \u0301b",
    "\ud83d a\udc00",
    "a\u00a0b c",
    "a\tb\nc",
    "東京 a東",
    "k" + "l" * 130 + " a",
    "\u200b a \u200b",
    "a\x00b \x7f c",
    "👩\u200d🔬 a",
    "CAFÉ café",
    "a-b (c) d's",
]


def assert_word_by_word_is_exact(tokenizer, texts):
    assert tokenizer.word_by_word
    fast = tokenizer.encode(texts)
    plain = whole_characters(tokenizer._encode_texts(texts, None), texts)
    for name in ("ids", "starts", "ends", "rows"):
        got, want = getattr(fast, name), getattr(plain, name)
        assert got.dtype == want.dtype and np.array_equal(got, want), name


def test_word_by_word_equals_whole_texts(tokenizer, shared):
    """Each distinct word is tokenised once; ids, offsets and rows are those of the whole texts."""
    assert_word_by_word_is_exact(tokenizer, [])
    assert_word_by_word_is_exact(tokenizer, NASTY + [" ".join(NASTY)] + NASTY[::-1] * 9)
    real = WordPiece.load(shared / "weights" / "all-MiniLM-L6-v2")
    data = read_examples(shared / "data" / "squad2-dev-2k.json.gz").examples
    assert_word_by_word_is_exact(
        real, NASTY + list({example.context for example in data}) + [e.question for e in data]
    )


def test_another_kind_of_tokenizer_reads_whole_texts(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    odd = WordPiece(backend, tmp_path)
    assert not odd.word_by_word and odd.encode(["a b"]).starts.tolist() == [0, 2]


def test_truncation_and_padding_of_a_tokenizer_json_are_switched_off(tmp_path):
    make_tokenizer(tmp_path)
    from tokenizers import BertWordPieceTokenizer

    backend = BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=True)
    backend.enable_truncation(max_length=2)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = WordPiece.load(tmp_path)
    for texts in (["a b c d", "e"], ["who?", "a b c"]):
        assert loaded.encode(texts).counts.tolist() == [len(loaded.encode([t]).ids) for t in texts]
    assert loaded._encode_texts(["a b c d", "e"], None).counts.tolist() == [4, 1]


def test_casing_comes_from_the_folder(tmp_path):
    assert make_tokenizer(tmp_path, do_lower_case=False).encode(["A a"]).ids.tolist() == [1, 5]
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="does not say whether the model is cased"):
        WordPiece.load(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match="neither tokenizer.json nor vocab.txt"):
        WordPiece.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"cut off')
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        WordPiece.load(tmp_path)


def with_added(tmp_path, *contents, **flags) -> WordPiece:
    """The small vocabulary with added tokens behind it, as a tokenizer.json holds them."""
    make_tokenizer(tmp_path)
    from tokenizers import AddedToken, BertWordPieceTokenizer

    backend = BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=True)
    for content in contents:
        backend.add_tokens([AddedToken(content, **flags)])
    backend.save(str(tmp_path / "tokenizer.json"))
    return WordPiece.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "flags", "fast"),
    [
        ("a b", {}, False),
        (" c", {}, False),
        ("<e1>", {"lstrip": True}, False),
        ("<e1>", {"rstrip": True}, False),
        ("東京", {"normalized": True}, False),  # its normal form has blanks between its two words
        ("[table]", {"special": True}, True),
        ("covid19", {}, True),
        ("de", {"single_word": True}, True),
    ],
)
def test_tokens_of_a_text_do_not_depend_on_the_others(tmp_path, content, flags, fast):
    """Added tokens may reach over a space, or take the blanks beside them: then texts are read whole."""
    tokenizer = with_added(tmp_path, content, **flags)
    assert tokenizer.word_by_word is fast
    texts = [
        "c a b d",
        "a b",
        "b c",
        "c <e1> d",
        "a <e1>",
        "covid19 [table] de",
        "x 東京",
        "東 京 a",
    ]
    together = tokenizer.encode(texts)
    for row, text in enumerate(texts):
        alone = tokenizer.encode([text])
        plain = tokenizer.backend.encode(text, add_special_tokens=False)
        own = slice(together.rows[row], together.rows[row + 1])
        spans = list(zip(alone.starts.tolist(), alone.ends.tolist(), strict=True))
        assert together.ids[own].tolist() == alone.ids.tolist() == plain.ids
        assert together.starts[own].tolist() == alone.starts.tolist()
        assert spans == plain.offsets


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("", [0]),
        ("abc", [0, 1, 2, 3]),
        ("e\u0301 x", [0, 2, 3, 4]),
        ("\u0301e", [0, 1, 2]),  # nothing before it
        ("a \u0301b", [0, 1, 2, 3, 4]),  # a blank takes no accent
        ("\u2764\ufe0f!", [0, 2, 3]),
        ("👩\u200d🔬a", [0, 3, 4]),
        ("👍🏽.", [0, 2, 3]),
        ("सि", [0, 2]),
        ("สี่", [0, 3]),
        ("\u1100\u1161\u11a8", [0, 3]),
        ("ब्रोंक", [0, 5, 6]),
        ("र्\u200dय", [0, 4]),
        ("1\ufe0f\u20e3.", [0, 3, 4]),
        ("می\u200cخواهم", [0, 1, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_where_characters_begin(text, begins):
    assert beginnings(text) == begins
    assert [extends(character) for character in "aé ठ京😀."] == [False] * 7


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("a cafe\u0301.", "cafe\u0301"),
        ("a cafe\u0301\u0323 b", "cafe\u0301\u0323"),
        ("e \u2764\ufe0f b", "\u2764\ufe0f"),
        ("ค สี่ ค", "สี่"),
        ("a जॉन एलवे हैं", "जॉन एलवे"),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}])
def test_answers_hold_whole_characters(tmp_path, context, answer, settings):
    """Labels lead to the whole answer, accents and vowel signs included, whatever the vocabulary does with them."""
    examples = [example("who?", context, answer)]
    windows = build_windows(examples, make_tokenizer(tmp_path, **settings))
    assert answer_text(windows, examples, 0) == answer
    assert windows.unlabelled == ()
    tokens = windows.contexts
    assert (np.diff(tokens.starts) >= 0).all() and (np.diff(tokens.ends) >= 0).all()


def test_a_character_in_several_tokens_is_never_split():
    """A cased vocabulary may have a token for the accent alone: both tokens then stand for the whole character."""
    ids = np.arange(3, dtype=np.int32)
    tokens = Tokens(
        ids, np.array([0, 1, 2], np.int32), np.array([1, 2, 3], np.int32), np.array([0, 3])
    )
    whole = whole_characters(tokens, ["e\u0301a"])
    assert (whole.starts.tolist(), whole.ends.tolist()) == ([0, 0, 2], [2, 2, 3])


def test_cut_is_by_the_token():
    rows = np.array([0, 3, 3, 5])
    numbers = np.arange(5, dtype=np.int32)
    tokens = Tokens(numbers, numbers, numbers + 1, rows)
    cut = tokens.cut(2)
    assert (cut.ids.tolist(), cut.rows.tolist()) == ([0, 1, 3, 4], [0, 2, 2, 4])
    cut = tokens.cut(np.array([1, 5, 0]))
    assert (cut.ids.tolist(), cut.starts.tolist(), cut.ends.tolist()) == ([0], [0], [1])
    assert cut.rows.tolist() == [0, 1, 1, 1]


def test_a_vocabulary_without_bert_s_tokens_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    for missing in ("[CLS]", "[SEP]"):
        kept = [word for word in WORDS if word != missing]
        vocabulary = {word: row for row, word in enumerate(kept)}
        backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        with pytest.raises(UserError) as caught:
            WordPiece(backend, tmp_path)
        assert f"the vocabulary has no {missing}; BERT needs one" in str(caught.value)


def test_a_vocabulary_without_its_unknown_token_is_refused(tmp_path):
    """The library fails at the first unknown word, which may come late."""
    from tokenizers import Tokenizer, models

    vocabulary = {word: row for row, word in enumerate(WORDS)}
    with pytest.raises(UserError, match="the vocabulary has no <unk>; BERT needs one"):
        WordPiece(Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>")), tmp_path)


def test_accents_and_chinese_characters_as_the_folder_says(tmp_path):
    cafe, tokyo = WORDS.index("cafe"), WORDS.index("東")
    assert make_tokenizer(tmp_path, strip_accents=False).encode(["café"]).ids.tolist() == [1]
    assert make_tokenizer(tmp_path, strip_accents=True).encode(["café"]).ids.tolist() == [cafe]
    tied = {"tokenize_chinese_chars": False}
    assert make_tokenizer(tmp_path, **tied).encode(["東京"]).ids.tolist() == [1]
    assert make_tokenizer(tmp_path).encode(["東京"]).ids.tolist() == [tokyo, tokyo + 1]


# "a b c d e f g h i j a b": 12 paragraph tokens; question "who ?" 2 tokens; max_length 11 leaves room for 6.
TWELVE = "a b c d e f g h i j a b"


def test_overlap_and_step_by_hand(tokenizer):
    examples = [example("who?", TWELVE)]
    overlap = build_windows(examples, tokenizer, max_length=11, overlap=2, max_question=2)
    assert overlap.first.tolist() == [0, 4, 8] and overlap.count.tolist() == [6, 6, 4]
    step = build_windows(examples, tokenizer, max_length=11, step=3, max_question=2)
    assert step.first.tolist() == [0, 3, 6] and step.count.tolist() == [6, 6, 6]
    assert overlap.lengths.tolist() == [11, 11, 9]


@pytest.mark.parametrize(("tokens", "windows"), [(0, 1), (1, 1), (6, 1), (7, 2), (10, 2), (11, 3)])
def test_number_of_windows(tokenizer, tokens, windows):
    built = build_windows(
        [example("who?", " ".join("abcdefghij"[i % 10] for i in range(tokens)))],
        tokenizer,
        max_length=11,
        overlap=2,
        max_question=2,
    )
    assert (
        len(built) == windows
        and built.count.sum() >= tokens
        and built.count.min() >= min(tokens, 1)
    )


def test_labels_at_both_ends_and_outside(tokenizer):
    examples = [
        example("who?", TWELVE, answer) for answer in ("a b c", "j a b", "e f", "a b c d e f g")
    ]
    examples.append(example("who?", TWELVE))
    windows = build_windows(examples, tokenizer, max_length=11, overlap=2, max_question=2)
    labelled = {
        (int(windows.question[row]), int(windows.first[row])): answer_text(windows, examples, row)
        for row in np.flatnonzero(windows.start_label)
    }
    assert labelled == {(0, 0): "a b c", (1, 8): "j a b", (2, 0): "e f", (2, 4): "e f"}
    assert windows.start_label[0] == 4 and windows.end_label[0] == 6  # behind [CLS] who ? [SEP]
    assert windows.unlabelled == (3,)  # 7 tokens fit no window of 6
    assert (windows.start_label[windows.question == 4] == 0).all()


def test_an_answer_inside_a_token_takes_the_whole_token(tokenizer):
    examples = [
        Example("q", "who?", "klm b", ("l",), (1,)),
        Example("r", "who?", "a  b ", (" b ",), (2,)),
    ]
    windows = build_windows(examples, tokenizer)
    assert answer_text(windows, examples, 0) == "l" and answer_text(windows, examples, 1) == "b"
    whole = [Example("q", "who?", "cafe b", ("af",), (1,))]
    assert answer_text(build_windows(whole, tokenizer), whole, 0) == "cafe"


def test_what_has_no_place_or_no_token_gets_no_label(tokenizer):
    """An answer whose place is unknown, one of blanks alone, and an empty one inside a token."""
    examples = [
        Example("1", "who?", "a b a", ("a",), (-1,)),
        Example("2", "who?", "a   b", ("  ",), (1,)),
        Example("3", "who?", "cafe b", ("",), (2,)),
        Example("4", "who?", "a b", ("", "b"), (0, 2)),
        Example("5", "who?", "a b", ("z", "b"), (-1, 2)),
    ]
    windows = build_windows(examples, tokenizer)
    assert windows.unlabelled == (0, 1, 2)
    assert windows.start_label.tolist() == [0, 0, 0, 5, 5]
    assert windows.end_label.tolist() == [0, 0, 0, 5, 5]


def test_an_answer_at_the_end_stays_in_its_paragraph(tokenizer):
    """Paragraphs are searched as one line: the last token of one must not reach into the next."""
    examples = [example("who?", "a b", "b"), example("who?", "cafe c", "cafe")]
    windows = build_windows(examples, tokenizer)
    assert [answer_text(windows, examples, row) for row in (0, 1)] == ["b", "cafe"]
    blank = [Example("1", "who?", "a  ", ("  ",), (1,)), example("who?", "b c", "b")]
    assert build_windows(blank, tokenizer).unlabelled == (0,)


def test_overlap_is_128_by_default(tokenizer):
    examples = [example("who?", "a " * 700)]
    default = build_windows(examples, tokenizer)
    said = build_windows(examples, tokenizer, overlap=128)
    assert default.first.tolist() == said.first.tolist() == [0, 251, 502]


def test_a_fingerprint_sees_all_that_the_model_sees(tokenizer):
    def of(*examples, **settings):
        return build_windows(list(examples), tokenizer, **settings).fingerprint()

    one = example("who?", "a b c", "b")
    assert of(one) == of(one)
    changed = [
        example("a?", "a b c", "b"),
        example("who?", "a b d", "b"),
        example("who?", "a b c", "a"),
        example("who?", "a b c", "b c"),  # only the end differs
        example("who?", "a b c"),
    ]
    assert len({of(one), *map(of, changed), of(one, one)}) == 7
    assert of(example("who?", "a " * 30), max_length=20, overlap=2, max_question=2) != of(
        example("who?", "a " * 30), max_length=20, overlap=3, max_question=2
    )


def test_a_fingerprint_has_sixteen_digits(tokenizer):
    for windows in (build_windows([example("a", "b")], tokenizer), text_windows(["a"], tokenizer)):
        assert len(windows.fingerprint()) == 16 and int(windows.fingerprint(), 16) >= 0


def test_a_fingerprint_sees_where_texts_end(tokenizer):
    """The same tokens in the same order, of two questions and of two paragraphs."""

    def of(*pairs):
        return build_windows([example(*pair) for pair in pairs], tokenizer).fingerprint()

    assert of(("a", "d"), ("b c", "e")) != of(("a b", "d"), ("c", "e"))
    assert of(("a", "d"), ("b", "e f")) != of(("a", "d e"), ("b", "f"))
    # Which paragraph a question is asked of.
    assert of(("a", "d"), ("b", "d"), ("c", "e")) != of(("a", "d"), ("b", "e"), ("c", "e"))


def test_a_fingerprint_of_texts(tokenizer):
    found = [
        text_windows(["a", "b"], tokenizer),
        text_windows(["a", "c"], tokenizer),
        text_windows(["a b"], tokenizer),
        text_windows(["a", "b"], tokenizer, labels=np.array([0, 1])),
        text_windows(["a", "b"], tokenizer, pairs=["c", "d"]),
        text_windows(["a", "b"], tokenizer, pairs=["c d", ""]),
    ]
    assert len({windows.fingerprint() for windows in found}) == len(found)
    assert found[0].fingerprint() == text_windows(["A", "b "], tokenizer).fingerprint()


def test_questions_are_cut_never_emptied_or_dropped(tokenizer):
    examples = [example("a " * 100, "b"), example("", "b"), example("who?", "")]
    windows = build_windows(examples, tokenizer, max_length=20, overlap=2, max_question=5)
    assert windows.questions.counts.tolist() == [5, 0, 2]
    assert windows.cut_questions == 1 and windows.question.tolist() == [0, 1, 2]
    assert windows.count.tolist() == [1, 1, 0] and windows.lengths.tolist() == [9, 4, 5]


def test_a_question_that_just_fits_is_not_cut(tokenizer):
    asked = [example("a " * count, "b") for count in (63, 64, 65)]
    windows = build_windows(asked, tokenizer)  # 64 tokens where nothing is said
    assert windows.questions.counts.tolist() == [63, 64, 64] and windows.cut_questions == 1


def test_windows_that_are_selected_keep_all_that_is_theirs(tokenizer):
    examples = [example("who?", TWELVE, "j a b"), example("a", TWELVE, "a b c")]
    windows = build_windows(examples, tokenizer, max_length=11, overlap=2, max_question=2)
    keep = np.array([4, 2])
    for rows in (keep, np.isin(np.arange(len(windows)), keep)):
        kept = windows.select(rows)
        order = np.flatnonzero(rows) if rows.dtype == bool else rows
        assert len(kept) == 2
        for name in ("question", "first", "count", "start_label", "end_label"):
            assert getattr(kept, name).tolist() == getattr(windows, name)[order].tolist(), name
    assert (
        windows.start_label[2] == windows.questions.counts[0] + 2 + 1
    )  # j, the second of "i j a b"


def test_a_paragraph_is_tokenised_once(tokenizer):
    windows = build_windows(
        [example("who?", TWELVE), example("a?", TWELVE), example("b?", "b")], tokenizer
    )
    assert windows.contexts.counts.tolist() == [12, 1] and windows.question_context.tolist() == [
        0,
        0,
        1,
    ]


def test_a_megabyte_of_text(tokenizer):
    text = "a b c d e " * 100_000
    windows = build_windows([example("who?", text)], tokenizer, max_length=384, overlap=128)
    assert windows.contexts.counts.tolist() == [500_000]
    assert windows.first[-1] + windows.count[-1] == 500_000


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(max_length=384, overlap=317, step=None, max_question=64), "use 0 to 316"),
        (dict(max_length=384, overlap=None, step=318, max_question=64), "skipped; use 1 to 317"),
        (dict(max_length=384, overlap=None, step=0, max_question=64), "read for ever"),
        (dict(max_length=60, overlap=8, step=None, max_question=64), "at least 68"),
        (dict(max_length=384, overlap=1, step=1, max_question=64), "not both"),
        (
            dict(max_length=600, overlap=1, step=None, max_question=64, max_positions=512),
            "has 512 positions",
        ),
        (dict(max_length=384, overlap=-1, step=None, max_question=64), "use 0 to 316"),
        (dict(max_length=384, overlap=1, step=None, max_question=0), "needs at least 1 token"),
        (dict(max_length=67, overlap=0, step=None, max_question=64), "use at least 68"),
        (dict(max_length=1_000_001, overlap=0, step=None, max_question=64), "at most 1,000,000"),
        (dict(max_length=384, overlap=None, step=None, max_question=64), "not neither"),
    ],
)
def test_settings_that_would_skip_or_hang_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        check_window_settings(**settings)


def test_settings_at_the_limit_are_taken():
    check_window_settings(512, 0, None, 64, max_positions=512)
    check_window_settings(68, 0, None, 64)
    check_window_settings(1_000_000, 0, None, 64)
    check_window_settings(384, None, 1, 64)
    check_window_settings(384, None, 317, 64)
    check_window_settings(384, 316, None, 64)
    check_window_settings(5, 0, None, 1)


# ---- batches ----


def test_a_packed_batch_written_out(tokenizer):
    windows = build_windows(
        [example("who?", "a b", "a b"), example("a", TWELVE)],
        tokenizer,
        max_length=11,
        overlap=2,
        max_question=2,
    )
    batch = WindowStore(windows).batch(np.array([2, 0]))
    cls, sep, ids = 2, 3, {word: i for i, word in enumerate(WORDS)}
    assert batch.lengths == (11, 7)
    assert batch.input_ids.tolist() == [
        cls,
        ids["a"],
        sep,
        *(ids[w] for w in "fghijab"),
        sep,
        cls,
        ids["who"],
        ids["?"],
        sep,
        ids["a"],
        ids["b"],
        sep,
    ]
    assert batch.token_type_ids[11:].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert batch.start_labels.tolist() == [0, 4] and batch.end_labels.tolist() == [0, 5]
    rows, mask, segments = padded(batch)
    assert rows.shape == (2, 11) and mask.sum(1).tolist() == [11, 7] and segments[1].sum() == 3
    assert padded(batch, pad_id=9)[0][1, 7:].tolist() == [9, 9, 9, 9]


def test_batches_equal_the_tokenizers_own_sequences(shared):
    tokenizer = WordPiece.load(shared / "weights" / "all-MiniLM-L6-v2")
    examples = read_examples(shared / "data" / "squad2-dev-2k.json.gz", limit=40).examples
    windows = build_windows(examples, tokenizer)
    batch = WindowStore(windows).batch(np.arange(len(windows)))
    parts = batch.input_ids.split(batch.lengths)
    for row, q in enumerate(windows.question):
        encoded = tokenizer.backend.encode(examples[q].question, examples[q].context)
        if len(encoded.ids) <= 384:
            assert parts[row].tolist() == encoded.ids


def test_order_is_a_pure_function_and_ranks_share_it():
    order = epoch_order(10, seed=3, epoch=1)
    assert sorted(order) == list(range(10)) and (order == epoch_order(10, 3, 1)).all()
    assert (order != epoch_order(10, 3, 2)).any() and (order != epoch_order(10, 4, 1)).any()
    line = np.arange(10)
    assert [step_rows(line, k, 4)[rank::2].tolist() for k in (0, 2) for rank in (0, 1)] == [
        [0, 2],
        [1, 3],
        [8],
        [9],
    ]


def test_micro_batches_respect_the_budget():
    lengths = np.array([5, 5, 5, 20, 1])
    assert [part.tolist() for part in split_by_tokens(np.arange(5), lengths, 10)] == [
        [0, 1],
        [2],
        [3],
        [4],
    ]
    assert split_by_tokens(np.arange(0), lengths, 10) == []
    assert [part.tolist() for part in by_length(lengths, 11)] == [[3], [0, 1], [2, 4]]


def test_a_window_beyond_the_budget_is_a_batch_of_its_own():
    lengths = np.array([4, 40, 4])
    for split in (split_by_tokens, split_evenly):
        assert [part.tolist() for part in split(np.arange(3), lengths, 16)] == [[0], [1], [2]]


# ---- real data: the numbers of DESIGN.md ----


@pytest.mark.parametrize(
    ("name", "stride", "windows"),
    [
        ("dev-v1.1", {"overlap": 128}, 10_784),
        ("dev-v1.1", {"step": 128}, 10_833),
        ("dev-v2.0", {"overlap": 128}, 12_134),
        ("dev-v2.0", {"step": 128}, 12_232),
    ],
)
def test_window_counts_of_squad(shared, name, stride, windows):
    tokenizer = WordPiece.load(shared / "weights" / "all-MiniLM-L6-v2")
    examples = read_examples(shared / "data" / f"{name}.json.gz").examples
    built = build_windows(examples, tokenizer, **stride)
    assert len(built) == windows
    assert built.unlabelled == () and built.cut_questions == 0
    # No answer is lost silently: each one that has a label decodes to its own text, but where it ends inside a word.
    odd = [
        (text, examples[built.question[row]].answer_texts[0])
        for row in np.flatnonzero(built.start_label)
        if (text := answer_text(built, examples, row))
        != examples[built.question[row]].answer_texts[0]
    ]
    assert all(gold in text for text, gold in odd) and len(odd) < 40, odd
