"""The Reader and find_spans with models of one's own: scores by name, a null score beside them, windows and attention."""

from typing import NamedTuple

import pytest
import torch
from test_own import sharper, start

from bertqa import BertForQuestionAnswering, Reader, UserError
from bertqa.data.examples import Example
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.inference import find_spans
from bertqa.model import folder
from bertqa.qa.search import SpanSettings


class Scores(NamedTuple):
    """In another order than ours, and with more in it."""

    pieces: torch.Tensor
    null: torch.Tensor | None
    end: torch.Tensor
    start: torch.Tensor


class Judging(torch.nn.Module):
    """A reader that adds the same number to the null score of every window."""

    def __init__(self, reader, null):
        super().__init__()
        self.encoder = reader.encoder
        self.reader = reader
        self.null = null

    def forward(self, input_ids, token_type_ids, lengths):
        logits = self.reader(input_ids, token_type_ids=token_type_ids, lengths=lengths)
        null = None if self.null is None else torch.full((len(lengths.lengths),), self.null)
        return Scores(input_ids, null, logits.end, logits.start)


def test_a_reader_reads_scores_by_name_and_adds_the_null_score(tiny_model):
    tokenizer = WordPiece.load(tiny_model)
    ours = Reader.load(tiny_model, device="cpu")
    pairs = [("where is a?", "a b c d e"), ("who is z?", "x y z")]
    settings = SpanSettings()
    windows = build_windows(
        [Example(str(i), q, c, (), ()) for i, (q, c) in enumerate(pairs)],
        tokenizer,
        max_length=20,
        overlap=4,
        max_question=8,
    )
    want, loss = find_spans(folder.load(tiny_model), windows, torch.device("cpu"), settings)
    for null in (None, 0.0, 50.0, -50.0):
        model = Judging(folder.load(tiny_model), null)
        spans, same_loss = find_spans(model, windows, torch.device("cpu"), settings)
        assert same_loss == loss and (spans.score == want.score).all()
        assert spans.null_score == pytest.approx(want.null_score + (null or 0.0), abs=1e-5)
        reader = Reader(model, tokenizer)
        answers = list(reader.answer_many(pairs, threshold=0.0))
        if null == 50.0:
            assert [answer.answer for answer in answers] == ["", ""]
        elif null == -50.0:
            assert all(answer.answer for answer in answers)
        else:
            assert answers == list(ours.answer_many(pairs, threshold=0.0))


def test_a_model_that_fails_in_an_evaluation_trains_on(tiny_model):
    """Whoever catches the error, as a notebook does, has the model in the mode that it was in."""
    model = folder.load(tiny_model).train()
    model.encoder.register_forward_hook(lambda *_: 1 / 0)
    example = Example("0", "where is a?", "a b c", (), ())
    windows = build_windows(
        [example], WordPiece.load(tiny_model), max_length=20, overlap=4, max_question=8
    )
    with pytest.raises(ZeroDivisionError):
        find_spans(model, windows, torch.device("cpu"), SpanSettings())
    assert model.training and model.encoder.training


def test_a_null_score_that_is_not_finite_is_named(tiny_model):
    reader = Reader(Judging(folder.load(tiny_model), float("nan")), WordPiece.load(tiny_model))
    with pytest.raises(UserError, match="question 0 .* null score nan"):
        reader.answer("where is a?", "a b c")


def test_a_reader_needs_a_model_and_a_tokenizer(tiny_model, tmp_path):
    """Windows and threshold are those of the model's folder, or the defaults."""
    qa = {"max_length": 40, "max_question": 8, "overlap": 5, "null_threshold": 0.5}
    folder.save(tmp_path / "tuned", folder.load(tiny_model), qa=qa)
    tokenizer = WordPiece.load(tiny_model)
    assert Reader(folder.load(tmp_path / "tuned"), tokenizer).qa == qa
    rebuilt = BertForQuestionAnswering(folder.load(tiny_model).config)
    reader = Reader(rebuilt, tokenizer)
    assert reader.qa == {"max_length": 64, "max_question": 32, "overlap": 16}
    assert reader.answer("where is a?", "a b c").answer


def test_a_reader_takes_the_attention_that_its_model_needs(tiny_model, tmp_path):
    folder.save(tmp_path / "sharp", folder.load(tiny_model, attention=sharper))
    with pytest.raises(UserError, match="attention=sharper"):
        Reader.load(tmp_path / "sharp", device="cpu")
    reader = Reader.load(tmp_path / "sharp", device="cpu", attention=sharper)
    assert torch.allclose(start(reader.model), start(folder.load(tiny_model, attention=sharper)))
