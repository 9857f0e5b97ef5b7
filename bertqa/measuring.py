"""A Reader measured, and its confidence fitted, on questions whose answers are known."""

from dataclasses import asdict

from bertqa.data.rows import examples_of
from bertqa.qa import metrics
from bertqa.qa.confidence import errors_of, evidence_of, fit_confidence, how_right, marks_of


def evaluate(reader, data: object) -> dict[str, float]:
    """What `Reader.evaluate` returns: SQuAD's own keys, of v1.1 for data that are like it."""
    asked = examples_of(data)
    pairs = ((example.question, example.context) for example in asked.examples)
    given = {}
    for example, answer in zip(asked.examples, reader.answer_many(pairs), strict=True):
        given[example.id] = answer.answer
    scores = metrics.score_answers(asked.examples, given, v1=asked.is_v1)
    return metrics.evaluate_v1(scores) if asked.is_v1 else metrics.evaluate_v2(scores)


def calibrate(reader, data: object) -> dict[str, float]:
    """Put a new fit into `reader.qa`. Returns what `Reader.calibrate` does."""
    examples = examples_of(data).examples
    spans, windows = reader.spans(examples)
    evidence = evidence_of(spans, windows, examples)
    marks = marks_of(spans, windows, examples)
    right = how_right(examples, marks)
    fitted = fit_confidence(evidence, right, marks.has_answer)
    reader.qa["confidence"] = asdict(fitted)
    return errors_of(fitted, evidence, right, marks.has_answer, reader.how().threshold)
