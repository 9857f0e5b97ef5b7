"""What a user of the installed package writes: `mypy --strict` passes it, and knows every type in it."""

from collections.abc import Iterator
from pathlib import Path

import bertqa
from bertqa import Answer, Reader, UserError


def several(reader: Reader, question: str, documents: list[str]) -> list[float]:
    return [one.score for one in reader.answer(question, documents, top_k=3, whole_words=True)]


def many(reader: Reader, questions: list[str], texts: list[str]) -> Iterator[Answer]:
    pairs = zip(questions, texts, strict=True)
    return reader.answer_many(pairs, allow_no_answer=False, on_error="keep")


def train(records: list[dict[str, object]], out: Path) -> str:
    reader = bertqa.fine_tune(records, out=out, epochs=2, lr=3e-5)
    return reader.answer("Who kept the lamp?", "Agnes Holm kept it.", threshold=0.0).answer


try:
    reader = Reader.load(device="cpu", dtype="bfloat16")
except UserError as error:
    raise SystemExit(str(error)) from None
best = reader.answer("Who kept the lamp?", "Agnes Holm kept it.", max_answer_length=15)
print(best.answer, round(best.score, 3), several(reader, "Who kept the lamp?", ["Agnes Holm."]))
print([answer.answer for answer in many(reader, ["Who?"], ["Agnes Holm."])])
print(bertqa.load_encoder(device="cpu", dtype="bf16").config.hidden_size)
