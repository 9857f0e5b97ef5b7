"""The Reader: what its answers and scores mean, documents, threads, memory, whole words, and transformers 4's pipeline."""

import gzip
import hashlib
import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from bertqa import Answer, Reader, UserError, answering
from bertqa.data.examples import Example
from bertqa.data.sources import chunks
from bertqa.data.tokenizer import WordPiece
from bertqa.data.tokens import TokenCache
from bertqa.data.windows import build_windows
from bertqa.model.heads import SpanLogits
from bertqa.model.record import with_defaults
from bertqa.qa.answers import characters
from bertqa.qa.asked import asked_of_pair, how_of
from bertqa.qa.documents import log_mass, probability, widen
from bertqa.qa.spans import Spans, SpanSettings

QA = {"max_length": 32, "overlap": 4, "max_question": 8, "max_answer_length": 30}


class Told(torch.nn.Module):
    """A model that is told its logits: {token ids of a window: (start logits, end logits)}."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, input_ids, token_type_ids, lengths):
        found = [self.logits[tuple(window.tolist())] for window in input_ids.split(lengths.lengths)]
        return SpanLogits(
            *(
                torch.tensor([value for window in found for value in window[side]])
                for side in (0, 1)
            )
        )


@pytest.fixture(scope="module")
def reader(tiny_model):
    made = Reader.load(tiny_model, "cpu")
    made.qa.update(QA)
    return made


def told(reader, question, contexts, peaks, qa=QA):
    """A Reader whose model gives 0 everywhere but for `peaks`: {(context, "start" or "end", position in window 0): logit}."""
    logits = {}
    for number, context in enumerate(contexts):
        windows = build_windows(
            [Example("q", question, context, (), ())],
            reader.tokenizer,
            max_length=qa["max_length"],
            overlap=qa["overlap"],
            max_question=qa["max_question"],
        )
        asked = [reader.tokenizer.cls_id, *windows.questions.ids.tolist(), reader.tokenizer.sep_id]
        for nth, (first, count) in enumerate(
            zip(windows.first.tolist(), windows.count.tolist(), strict=True)
        ):
            ids = (
                *asked,
                *windows.contexts.ids[first : first + count].tolist(),
                reader.tokenizer.sep_id,
            )
            start, end = [0.0] * len(ids), [0.0] * len(ids)
            for (which, side, position), value in peaks.items():
                if which == number and nth == 0:
                    (start if side == "start" else end)[position] = value
            logits[ids] = (start, end)
    return Reader(Told(logits), reader.tokenizer, dict(qa), torch.device("cpu"))


def test_the_score_is_the_product_of_two_probabilities(reader):
    # [CLS] is a ? [SEP] a b c [SEP]: start 3 at b, end 2 at c, 1 at [CLS] both; 4 positions count on each side.
    made = told(
        reader,
        "is a?",
        ["a b c"],
        {
            (0, "start", 6): 3.0,
            (0, "end", 7): 2.0,
            (0, "start", 0): 1.0,
            (0, "end", 0): 1.0,
            (0, "start", 2): 9.0,
            (0, "end", 8): 9.0,
        },
    )
    start, end = np.exp([1.0, 0, 3, 0]).sum(), np.exp([1.0, 0, 0, 2]).sum()
    best, null, *_ = made.answer("is a?", "a b c", top_k=3, threshold=0.0)
    assert best == Answer("b c", pytest.approx(np.exp(5) / (start * end)), 2, 5, 0)
    assert made.answer("is a?", "a b c") == best  # no threshold was tuned: always an answer
    assert null.answer != ""  # "b" and "c" score 3 and 2, as "" does: they ...
    silent, second = made.answer("is a?", "a b c", top_k=2, threshold=-3.5)
    assert (
        silent == Answer("", pytest.approx(np.exp(2) / (start * end)), 0, 0, 0) and second == best
    )  # odds are -3
    assert made.answer("is a?", "a b c", threshold=-2.5) == best
    assert made.answer("is a?", "a b c", allow_no_answer=False, threshold=-3.5) == best


def test_true_means_the_null_answer_competes_even_if_no_threshold_was_tuned(reader):
    made = told(reader, "is a?", ["a b c"], {(0, "start", 0): 5.0, (0, "end", 0): 5.0})
    assert made.answer("is a?", "a b c").answer != ""
    assert made.answer("is a?", "a b c", allow_no_answer=True).answer == ""
    made.qa["null_threshold"] = 11.0
    assert (
        made.answer("is a?", "a b c", allow_no_answer=True).answer
        == made.answer("is a?", "a b c").answer
        != ""
    )
    made.qa["null_threshold"] = 9.0
    assert made.answer("is a?", "a b c").answer == ""
    assert made.answer("is a?", "a b c", allow_no_answer=False).answer != ""


def test_documents_give_the_best_over_all(reader):
    contexts = ["a b c", "", "d e f", "d e f g"]
    peaks = {
        (0, "start", 5): 2.0,
        (0, "end", 5): 2.0,
        (2, "start", 6): 3.0,
        (2, "end", 7): 3.0,
        (3, "start", 5): 2.5,
        (0, "start", 0): 4.0,
        (1, "start", 0): 9.0,
        (2, "start", 0): 1.5,
        (3, "start", 0): 8.0,
    }
    made = told(reader, "is a?", contexts, peaks)
    best = made.answer("is a?", contexts)
    assert (best.answer, best.start, best.end, best.document) == ("e f", 2, 5, 2)
    ranked = made.answer("is a?", contexts, top_k=40, threshold=0.0)
    assert [a.score for a in ranked] == sorted((a.score for a in ranked), reverse=True)
    assert {a.document for a in ranked if a.answer} == {0, 2, 3} and sum(
        a.answer == "" for a in ranked
    ) == 1
    assert sum(a.score for a in ranked) <= 1 and all(
        contexts[a.document][a.start : a.end] == a.answer for a in ranked
    )
    # The null score is the least of all documents, 1.5, as it is over windows: odds 1.5 - 6.
    assert made.answer("is a?", contexts, threshold=-4.6).answer == ""
    assert made.answer("is a?", contexts, threshold=-4.4) == best
    many = list(
        made.answer_many([("is a?", contexts), ("is a?", "a b c"), ("is a?", tuple(contexts[1:3]))])
    )
    assert many[0] == best and many[1].answer == "a" and many[2].document == 1
    assert made.answer("is a?", [""]) == made.answer("is a?", []) == Answer("", 1.0, 0, 0, 0)


# ---- options ----


def test_the_default_threshold_is_zero(reader):
    """Null odds -0.5 and 0.5, for a model that has no threshold of its own."""
    for null, answer in ((0.5, "a"), (1.5, "")):
        made = told(reader, "is a?", ["a"], {(0, "start", 5): 1.0, (0, "start", 0): null})
        assert made.answer("is a?", "a", allow_no_answer=True).answer == answer


def test_the_answer_length_of_the_training_is_kept_to(reader):
    peaks = {(0, "start", 5): 3.0, (0, "end", 7): 3.0, (0, "end", 6): 2.0}
    for length, answer in ((3, "a b c"), (2, "a b"), (1, "a")):
        qa = {**QA, "max_answer_length": length}
        made = told(reader, "is a?", ["a b c"], peaks, qa)
        assert made.answer("is a?", "a b c").answer == answer
        assert made.answer("is a?", "a b c", max_answer_length=3).answer == "a b c"
        spans, _ = made.spans([Example("1", "is a?", "a b c", (), ())])
        assert spans.settings.max_answer_length == length
        assert spans.last[0, 0] == length - 1
        spans, _ = made.spans([Example("1", "is a?", "a b c", (), ())], 4, 2, mode="hf")
        assert spans.settings == SpanSettings(4, 2, "hf")
    with pytest.raises(UserError, match="max_answer_length is 0"):
        made.spans([Example("1", "is a?", "a b c", (), ())], max_answer_length=0)


def test_a_document_without_tokens_answers_nothing(reader):
    answers = reader.answer("is a?", ["", "a b", " "], top_k=9, allow_no_answer=False)
    assert [(one.answer, one.document) for one in answers] and len(answers) == 3
    assert {one.answer for one in answers} == {"a", "b", "a b"}
    assert {one.document for one in answers} == {1}


def test_how_much_is_done_is_told(reader):
    """After every batch the share of the windows that it had; together they are all."""
    chunk = [asked_of_pair(n, ("where is a?", "a b c " * n)) for n in range(1, 9)]
    told_shares = []
    rankings = reader.rank(chunk, how_of(reader.qa), told_shares.append)
    assert len(rankings) == 8 and told_shares and sum(told_shares) == pytest.approx(1)
    alone = reader.rank(chunk, how_of(reader.qa))
    assert [r.answers for r in alone] == [r.answers for r in rankings]


def test_as_many_answers_as_asked_for(reader, monkeypatch):
    text = "a b c d e f g h i j k l m n"
    runs = []
    read = answering.read_documents
    monkeypatch.setattr(
        answering, "read_documents", lambda *args, **named: runs.append(1) or read(*args, **named)
    )
    assert len(reader.answer("is a?", text, top_k=40, allow_no_answer=False)) == 40
    assert len(runs) == 1  # where texts differ, the model need not run twice
    # 17 x "a" have 17 distinct texts, which are among the 120 spans with other scores than the first 60
    many = reader.answer("is a?", "a " * 17, top_k=17, allow_no_answer=False)
    assert {one.answer for one in many} == {("a " * n).strip() for n in range(1, 18)}
    assert len(reader.answer("is a?", "a " * 17, top_k=50, allow_no_answer=False)) == 17
    # and the documents together
    assert len(reader.answer("is a?", ["a a", "b"], top_k=9, allow_no_answer=False)) == 3


def test_probabilities_are_over_all_documents(reader):
    made = told(reader, "is a?", ["a b", "c"], {(0, "start", 5): 2.0, (1, "end", 5): 1.0})
    answer = made.answer("is a?", ["a b", "c"])
    start = np.exp([0, 2, 0, 0, 0]).sum()  # [CLS] a b, [CLS] c
    end = np.exp([0, 0, 0, 0, 1]).sum()
    assert answer == Answer("a", pytest.approx(np.exp(2) / (start * end)), 0, 1, 0)


def test_no_answer_stands_behind_its_equals(reader):
    made = told(reader, "is a?", ["a b"], {})  # every score is 0
    answers = made.answer("is a?", "a b", top_k=4, threshold=0.0)
    assert [one.answer for one in answers] == ["a", "a b", "b", ""]


def test_a_probability_is_at_most_one():
    assert probability(2.0000001, 2.0) == 1.0 and probability(1.0, 2.0) == np.exp(-1.0)


# ---- loading ----


def test_int8_is_for_the_cpu_whatever_else_is_there(tiny_model, monkeypatch):
    picked = []
    monkeypatch.setattr(
        "bertqa.device.pick_device",
        lambda name, number=None: picked.append(name) or torch.device("cpu"),
    )
    for device in (None, "auto"):
        Reader.load(tiny_model, device, int8=True)
    Reader.load(tiny_model)
    assert picked == ["cpu", "cpu", "auto"]


def test_windows_of_a_model_that_says_nothing_of_them(tiny_model):
    assert Reader.load(tiny_model).qa == {"max_length": 64, "max_question": 32, "overlap": 16}
    assert with_defaults({}, 512) == {"max_length": 384, "max_question": 64, "overlap": 128}


def test_a_model_that_was_trained_with_steps_reads_in_steps():
    qa = {"max_length": 32, "max_question": 8, "step": 5}
    assert with_defaults(qa, 64) == qa


# ---- streams and the token cache ----


def test_pairs_may_be_endless_and_the_first_answers_come_soon(reader):
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield ("where is a?", "a b c")

    answers = reader.answer_many(endless())
    first = next(answers)
    assert len(drawn) == answering.FIRST_QUESTIONS == 32 and isinstance(first, Answer)
    assert all(next(answers) == first for _ in range(40)) and len(drawn) == 32 + 64


def test_a_question_that_is_cut_is_said_once(reader):
    import warnings

    question = "where is " + "very " * 100 + "a?"
    with pytest.warns(UserWarning, match="a question has more than 8 tokens, and is read without"):
        reader.answer(question, "a b c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader.answer("where?", "a b c")


def test_chunks_grow_and_long_texts_make_them_short():
    assert [len(chunk) for chunk in chunks(range(20), 8, first=2)] == [2, 4, 8, 6]
    assert [len(chunk) for chunk in chunks(range(5), 2)] == [2, 2, 1]
    assert list(chunks([9, 1, 9, 1], 100, weigh=lambda n: n << 18)) == [[9], [1, 9], [1]]
    assert list(chunks([], 2)) == []


def test_a_long_text_is_tokenised_once(tiny_model, monkeypatch):
    monkeypatch.setattr("bertqa.data.tokens.LONG_TEXT", 50)
    tokenizer, seen = WordPiece.load(tiny_model), []
    encode = tokenizer.encode
    monkeypatch.setattr(
        tokenizer,
        "encode",
        lambda texts, progress=None: seen.extend(texts) or encode(texts, progress),
    )
    memory = TokenCache(tokenizer, most=200)
    long, longer, short = "a b c d " * 10, "e f g h " * 30, "a b"
    for texts in ([short, long], [long, short], [longer, long], [long], [short]):
        got, right = memory.encode(texts), encode(texts)
        for name in ("ids", "starts", "ends", "rows"):
            assert np.array_equal(getattr(got, name), getattr(right, name))
            assert getattr(got, name).dtype == getattr(right, name).dtype
    assert seen == [short, long, short, longer, short]
    memory.encode(
        [longer, "i j k l " * 25]
    )  # 120 + 100 tokens beside the 40: the oldest goes, then the next
    assert list(memory.kept) == ["i j k l " * 25]
    memory.encode(["m n o p " * 100])  # more than all the room: kept all the same, alone
    assert list(memory.kept) == ["m n o p " * 100]


def test_the_text_that_was_used_longest_ago_is_dropped_first(tiny_model, monkeypatch):
    monkeypatch.setattr("bertqa.data.tokens.LONG_TEXT", 50)
    cache = TokenCache(WordPiece.load(tiny_model), most=100)
    one, two, three = (f"{letter} " * 40 for letter in "abc")  # 40 tokens each
    for text in (one, two, one, three):
        cache.encode([text])
    assert list(cache.kept) == [one, three]


def test_short_texts_do_not_go_through_the_cache(tiny_model, monkeypatch):
    cache = TokenCache(WordPiece.load(tiny_model))
    monkeypatch.setattr(cache.tokenizer, "encode", lambda texts, progress: (texts, progress))
    assert cache.encode(["a", "a"], "read") == (["a", "a"], "read")


def test_words_go_on_as_the_vocabulary_says(tmp_path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "@@able", "story"]
    vocabulary = {word: row for row, word in enumerate(words)}
    backend = Tokenizer(
        models.WordPiece(vocab=vocabulary, unk_token="[UNK]", continuing_subword_prefix="@@")
    )
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    cache = TokenCache(WordPiece.load(tmp_path))
    ids = cache.encode(["unable story"]).ids
    assert cache.continues(ids).tolist() == [False, True, False]


def test_questions_across_calls_share_the_tokens_of_a_document(reader, monkeypatch):
    seen = []
    encode = reader.tokenizer.tokenizer.encode
    monkeypatch.setattr(
        reader.tokenizer.tokenizer,
        "encode",
        lambda texts, progress=None: seen.extend(texts) or encode(texts, progress),
    )
    monkeypatch.setattr("bertqa.data.tokens.LONG_TEXT", 50)
    document = "z y x w " * 20
    first = reader.answer("where is z?", document)
    assert document in seen
    seen.clear()
    assert reader.answer("where is z?", document) == first
    list(reader.answer_many([("where is y?", document), ("where is x?", document)]))
    assert document not in seen


def test_threads_get_the_answers_that_one_thread_gets(reader, monkeypatch):
    monkeypatch.setattr(
        "bertqa.data.tokens.LONG_TEXT", 50
    )  # so that they share the memory, which ...
    monkeypatch.setattr(reader.tokenizer, "most", 100)  # is too small for all of them
    pairs = [
        (f"where is {letter}?", f"{letter} b c d " * 3 * n) for n, letter in enumerate("acegikm", 1)
    ]
    alone = [reader.answer(*pair, top_k=3) for pair in pairs]
    right, wrong, start = [], [], threading.Barrier(4)

    def ask(shift):
        start.wait()
        for turn in range(len(pairs)):
            row = (turn * 5 + shift) % len(pairs)
            (right if reader.answer(*pairs[row], top_k=3) == alone[row] else wrong).append(row)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(right) == 4 * len(pairs)  # fewer where a thread died of an error


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (("q", None), "pair 2 is"),
        (("q", ["a", 3]), "a list of strings"),
        ("question", "give .question, context"),
        ((None, "a"), "pair 2 is"),
        (("q", "c", "x"), "pair 2 is"),
    ],
)
def test_what_is_no_pair_is_named(reader, pair, says):
    with pytest.raises(UserError, match=says):
        list(reader.answer_many([("where is a?", "a"), pair]))


@pytest.mark.parametrize(
    ("options", "says"), [({"top_k": 0}, "top_k is 0"), ({"max_answer_length": 0}, "use 1 or more")]
)
def test_options_without_meaning(reader, options, says):
    with pytest.raises(UserError, match=says):
        reader.answer("where is a?", "a b", **options)


@pytest.mark.parametrize(
    ("tuned", "options", "threshold"),
    [
        (None, {}, None),
        (None, {"allow_no_answer": True}, 0.0),
        (None, {"threshold": 2}, 2),
        (None, {"threshold": 2, "allow_no_answer": False}, None),
        (1.5, {}, 1.5),
        (1.5, {"allow_no_answer": True}, 1.5),
        (1.5, {"allow_no_answer": False}, None),
        (1.5, {"threshold": 0.0}, 0.0),
        (0.0, {}, 0.0),
    ],
)
def test_which_threshold_holds(tuned, options, threshold):
    assert how_of({"null_threshold": tuned}, **options).threshold == threshold
    if tuned is None:
        assert how_of({}, **options).threshold == threshold


def test_how_to_answer():
    how = how_of({"max_answer_length": 7}, 6)
    assert (how.top_k, how.whole_words, how.listed) == (6, False, 0)
    assert how.spans == SpanSettings(20, 7)
    assert how_of({}, 7).spans == SpanSettings(21, 30)
    asked = how_of({}, 1, max_answer_length=2, whole_words=True, mode="hf", max_context=True)
    assert asked.spans == SpanSettings(20, 2, "hf", True) and asked.whole_words


def test_a_question_without_documents_has_an_empty_one(reader):
    assert reader.answer("where is a?", []).answer == ""
    none, two = asked_of_pair(3, ("q", [])), asked_of_pair(4, ["q", ("a", "bc")])
    assert [(e.id, e.question, e.context) for e in none.documents] == [("3", "q", "")]
    assert [(e.id, e.context) for e in two.documents] == [("4", "a"), ("4", "bc")]
    assert (none.characters, two.characters, two.error) == (0, 3, "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": "cuda:x"}, "cuda:N"),
        ({"dtype": "int4"}, "dtype is 'int4'"),
        ({"device": torch.device("meta"), "int8": True}, "int8 runs on the CPU only"),
    ],
)
def test_devices_and_types_that_are_not_there(tiny_model, options, says):
    with pytest.raises(UserError, match=says):
        Reader.load(tiny_model, **options)


def test_devices_and_types_by_name_or_object(tiny_model):
    made = Reader.load(tiny_model, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert made.device.type == "cpu" and made.dtype == torch.bfloat16
    assert (
        Reader.load(tiny_model, "cpu", "fp32").dtype
        == Reader.load(tiny_model, "cpu").dtype
        == torch.float32
    )


def test_the_mass_leaves_out_question_and_separators():
    logits = np.log(
        np.array([1, 50, 50, 2, 3, 50, 4, 50, 50], np.float32)
    )  # [CLS] q [SEP] p p [SEP], [CLS] q [SEP]
    assert np.exp(log_mass(logits, np.array([6, 3]), np.array([2, 0]))) == pytest.approx([6, 4])


def test_whole_words(tmp_path):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "?",
        "un",
        "##believ",
        "##able",
        "story",
        "-",
        "##s",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    memory = TokenCache(WordPiece.load(tmp_path))
    text = "Unbelievable storys - unbelievable"  # un ##believ ##able story ##s - un ##believ ##able
    windows = build_windows(
        [Example("1", "story?", "story", (), ()), Example("2", "story?", text, (), ())], memory
    )
    assert memory.continues(windows.contexts.ids).tolist() == [
        False,
        *[False, True, True, False, True, False],
        False,
        True,
        True,
    ]
    empty = np.zeros((2, 4), np.float32)
    spans = Spans(
        SpanSettings(4),
        np.array([[0, -1, -1, -1], [1, 2, 3, 7]], np.int32),
        np.array([[0, -1, -1, -1], [1, 3, 5, 7]], np.int32),
        empty,
        empty,
        empty,
        *empty[:, :3].T,
    )
    widen(spans, windows, memory.continues(windows.contexts.ids))
    assert spans.first.tolist() == [[0, -1, -1, -1], [0, 0, 3, 6]] and spans.last.tolist() == [
        [0, -1, -1, -1],
        [2, 4, 5, 8],
    ]
    starts, ends = characters(spans, windows)
    assert [text[a:b] for a, b in zip(starts[1], ends[1], strict=True)] == [
        "Unbelievable",
        "Unbelievable storys",
        "storys -",
        "unbelievable",
    ]


def test_words_stay_in_their_document(tiny_model):
    """Where words are split at blanks only, a document may begin with a token such as "##able"."""
    documents = [Example(text, "a", text, (), ()) for text in ("b c", "", "b c d", "")]
    windows = build_windows(documents, WordPiece.load(tiny_model))
    continues = np.array([False, True, True, True, False])  # b c, b c d
    exists = np.array([[1, -1, 1, -1]], np.int32).T
    empty = np.zeros((4, 1), np.float32)
    spans = Spans(
        SpanSettings(1),
        exists.copy(),
        exists.copy(),
        empty,
        empty,
        empty,
        *empty[:, :1].T.repeat(3, 0),
    )
    widen(spans, windows, continues)
    assert spans.first[:, 0].tolist() == [0, -1, 0, -1]
    assert spans.last[:, 0].tolist() == [1, -1, 1, -1]


MODES = {
    "words": dict(whole_words=True, allow_no_answer=False),
    "plain": dict(allow_no_answer=False),
    "impossible": dict(whole_words=True, allow_no_answer=True, threshold=0.0),
    "impossible_plain": dict(allow_no_answer=True, threshold=0.0),
}
MOST = 15  # tokens of an answer, the pipeline's default


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The cases of pipeline_cases.json ("how" in it says where they come from), each with a "reader" that is told the
    recorded logits and with "spans": all spans, best first, as (start + end logit, start, end, and the whole word's)."""
    file = json.loads(Path(__file__).with_name("pipeline_cases.json").read_text(encoding="utf-8"))
    where = tmp_path_factory.mktemp("recorded")
    (where / "vocab.txt").write_text("\n".join(file["vocab"]) + "\n", encoding="utf-8")
    (where / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    memory = TokenCache(WordPiece.load(where))
    for case in file["cases"]:
        case["context"] = file["contexts"][case["context"]]
        qa = {"max_length": case["max_seq_len"], "overlap": case["doc_stride"], "max_question": 64}
        windows = build_windows(
            [Example("q", case["question"], case["context"], (), ())], memory, **qa
        )
        assert [w["first"] for w in case["windows"]] == windows.contexts.starts[
            windows.first
        ].tolist()
        assert [len(w["start"]) for w in case["windows"]] == windows.lengths.tolist()
        tokens, asked = (
            windows.contexts,
            (windows.cls_id, *windows.questions.ids.tolist(), windows.sep_id),
        )
        begins = np.flatnonzero(~memory.continues(tokens.ids))
        word = np.searchsorted(begins, np.arange(len(tokens.ids)), side="right") - 1
        left, right = (
            tokens.starts[begins[word]].tolist(),
            tokens.ends[np.append(begins[1:], len(word))[word] - 1].tolist(),
        )
        starts, ends = tokens.starts.tolist(), tokens.ends.tolist()
        logits, case["spans"] = {}, []
        for first, count, window in zip(
            windows.first.tolist(), windows.count.tolist(), case["windows"], strict=True
        ):
            start, end = (np.array(window[side], np.float32) / 100 for side in ("start", "end"))
            logits[(*asked, *tokens.ids[first : first + count].tolist(), windows.sep_id)] = (
                start.tolist(),
                end.tolist(),
            )
            for i in range(first, first + count):
                for j in range(i, min(first + count, i + MOST)):
                    score = start[i - first + len(asked)] + end[j - first + len(asked)]
                    case["spans"].append((score, starts[i], ends[j], left[i], right[j]))
        case["spans"].sort(key=lambda span: -span[0])
        case["reader"] = Reader(Told(logits), memory, qa, torch.device("cpu"))
    return file["cases"]


@pytest.mark.parametrize(
    ("mode", "others"),
    [
        ("words", [11, 13, 16]),
        ("plain", [13, 29]),
        ("impossible", [13]),
        ("impossible_plain", [13, 29]),
    ],
)
def test_answers_are_those_of_transformers_4_pipeline(recorded, mode, others):
    """Same text and offsets, but where the pipeline compares probabilities of different windows, or adds up those of
    equal texts. There the Reader's answer is the one with the higher start + end logit."""
    differ = []
    for number, case in enumerate(recorded):
        answer = case["reader"].answer(
            case["question"], case["context"], max_answer_length=MOST, **MODES[mode]
        )
        text, start, end, score = case["pipeline"][mode]
        best, *span = case["spans"][0]
        span = span[2:] if "whole_words" in MODES[mode] else span[:2]
        if answer.answer:  # the exact best, found here by trying all
            assert [answer.start, answer.end] == span and case["context"][
                answer.start : answer.end
            ] == answer.answer
        if (answer.answer, answer.start, answer.end) == (text, start, end):
            if len(case["windows"]) == 1 and (mode.endswith("plain") or not text):
                assert answer.score == pytest.approx(score, abs=1e-6)
        else:
            differ.append(number)
            column = 3 if "whole_words" in MODES[mode] else 1
            theirs = [s for s, *at in case["spans"] if at[column - 1 : column + 1] == [start, end]]
            null = min((w["start"][0] + w["end"][0]) / 100 for w in case["windows"])
            assert max(best, null if not answer.answer else best) > (theirs[0] if text else null)
    assert differ == others


class Watched(torch.nn.Module):
    """A model that keeps its logits as `Told` wants them."""

    def __init__(self, model):
        super().__init__()
        self.model, self.logits = model, {}

    def forward(self, input_ids, token_type_ids, lengths):
        found = self.model(input_ids, token_type_ids=token_type_ids, lengths=lengths)
        parts = zip(*(each.split(lengths.lengths) for each in (input_ids, *found)), strict=True)
        self.logits.update(
            (tuple(ids.tolist()), (start.tolist(), end.tolist())) for ids, start, end in parts
        )
        return found


@pytest.fixture(scope="module")
def squad(shared):
    """{mode: rows} of pipeline_squad.json: (id, windows, the pipeline's [start, end, score], the Reader's Answer).

    The model runs once, for the first mode; the others are told its logits. A window is (logits (n, MOST) of the spans
    that begin at each token, their probabilities, that of the null answer, its tokens' (2, n) offsets, and their words').
    """
    here = Path(__file__)
    file = json.loads(here.with_name("pipeline_squad.json").read_text())
    where = here.parents[1] / "weights" / "minilm-squad2"
    sha256 = hashlib.sha256((where / "model.safetensors").read_bytes()).hexdigest()
    assert sha256 == file["weights_sha256"], (
        "the bundled reader has changed: run tests/record_pipeline.py, see there"
    )
    texts = {}
    for name in {row[0] for row in file["questions"]}:
        for article in json.loads(gzip.decompress((shared / "data" / name).read_bytes()))["data"]:
            texts.update(
                ((name, qa["id"]), (qa["question"], paragraph["context"]))
                for paragraph in article["paragraphs"]
                for qa in paragraph["qas"]
            )
    pairs = [texts[name, id] for name, id, *_ in file["questions"]]
    reader = Reader.load(where, "cpu", "fp32")
    reader.model = watched = Watched(reader.model)
    answers = {"words": list(reader.answer_many(pairs, max_answer_length=MOST, **MODES["words"]))}
    reader.model = Told(watched.logits)
    for mode in list(MODES)[1:]:
        answers[mode] = list(reader.answer_many(pairs, max_answer_length=MOST, **MODES[mode]))
    seen = [banded(question, context, reader, watched.logits) for question, context in pairs]
    return {
        mode: [
            (row[1], context, windows, theirs, answer)
            for row, (_, context), windows, theirs, answer in zip(
                file["questions"],
                pairs,
                seen,
                (row[2 + nth] for row in file["questions"]),
                answers[mode],
                strict=True,
            )
        ]
        for nth, mode in enumerate(MODES)
    }


def banded(question, context, reader, logits):
    """The windows of a question as fixture `squad` describes them."""
    windows = build_windows(
        [Example("q", question, context, (), ())],
        reader.tokenizer,
        max_length=384,
        overlap=128,
        max_question=64,
    )
    tokens, asked = (
        windows.contexts,
        (windows.cls_id, *windows.questions.ids.tolist(), windows.sep_id),
    )
    begins = np.flatnonzero(~reader.tokenizer.continues(tokens.ids))
    word = np.searchsorted(begins, np.arange(len(tokens.ids)), side="right") - 1
    offsets = {
        "plain": np.array([tokens.starts, tokens.ends]),
        "words": np.array(
            [tokens.starts[begins[word]], tokens.ends[np.append(begins[1:], len(word))[word] - 1]]
        ),
    }
    result = []
    for first, count in zip(windows.first.tolist(), windows.count.tolist(), strict=True):
        part = slice(first, first + count)
        start, end = np.array(logits[(*asked, *tokens.ids[part].tolist(), windows.sep_id)])[
            :, [0, *range(len(asked), len(asked) + count)]
        ]  # (1 + n,) [CLS] and the paragraph
        sums = (
            start[1:, None]
            + np.append(end[1:], [-np.inf] * (MOST - 1))[
                np.arange(count)[:, None] + np.arange(MOST)
            ]
        )
        share = np.log(np.exp(start).sum() * np.exp(end).sum())
        result.append(
            (
                sums,
                np.exp(sums - share),
                np.exp(start[0] + end[0] - share),
                {name: each[:, part] for name, each in offsets.items()},
            )
        )
    return result


def as_the_pipeline(context, windows, mode, add=True):
    """(start, end, score, logit of that span) by the rule of transformers 4: the best spans of each window, by its own
    probabilities; scores of equal texts are added up."""
    found = {}
    for sums, shares, _, offsets in windows:
        starts, ends = offsets["plain" if mode.endswith("plain") else "words"]
        for place in np.argsort(-shares, axis=None, kind="stable")[
            : 1 if mode.endswith("plain") else 12
        ]:
            i, j = divmod(int(place), MOST)
            if np.isfinite(sums[i, j]):
                start, end = int(starts[i]), int(ends[i + j])
                known = found.setdefault(
                    context[start:end].lower() if add else (start, end),
                    [start, end, 0.0, sums[i, j]],
                )
                known[2] = known[2] + shares[i, j] if add else max(known[2], shares[i, j])
                if known[:2] == [start, end]:
                    known[3] = max(known[3], sums[i, j])
    best = max(found.values(), key=lambda each: each[2])
    null = min(null for _, _, null, _ in windows)
    return [0, 0, null, None] if mode.startswith("impossible") and null > best[2] else best


@pytest.mark.parametrize(
    ("mode", "others"),
    [
        ("words", {"equal texts added": 1}),
        ("plain", {"equal texts added": 1}),
        ("impossible", {"equal texts added": 1}),
        ("impossible_plain", {"equal texts added": 1}),
    ],
)
def test_300_real_questions_are_answered_as_by_the_pipeline(squad, mode, others):
    """The pipeline's rule, applied to the Reader's logits, gives its 300 answers and scores: so logits and offsets are the
    same, and where the Reader answers otherwise the rule is why. There, its span has the higher logits."""
    differ, rows = Counter(), squad[mode]
    for id, context, windows, theirs, answer in rows:
        start, end, score, logit = as_the_pipeline(context, windows, mode)
        assert [start, end] == theirs[:2] and score == pytest.approx(theirs[2], abs=1e-4), id
        assert answer.answer == context[answer.start : answer.end]
        sums, _, _, offsets = max(windows, key=lambda window: window[0].max())
        i, j = divmod(int(sums.argmax()), MOST)
        starts, ends = offsets["plain" if mode.endswith("plain") else "words"]
        assert not answer.answer or [answer.start, answer.end] == [
            starts[i],
            ends[i + j],
        ]  # the best of all spans
        if [answer.start, answer.end] == theirs[:2]:
            if len(windows) == 1 and (mode.endswith("plain") or not answer.answer):
                assert answer.score == pytest.approx(theirs[2], abs=1e-4), id
            continue
        alone = as_the_pipeline(context, windows, mode, add=False)
        differ[
            "equal texts added" if alone[:2] == [answer.start, answer.end] else "windows compared"
        ] += 1
        if answer.answer and logit is not None:
            assert sums[i, j] > logit, id
    assert len(rows) == 300 and differ == others
