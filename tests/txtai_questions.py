"""Extractive question answering for txtai, in the place of its pipeline `Questions`: copy this file beside your code.

    questions = Questions("weights/minilm-squad2")
    extractor = Extractor(embeddings, questions)

txtai's own asks transformers' pipeline, which left with transformers 5.3.
"""

from txtai.pipeline import Pipeline

from bertqa import Reader


class Questions(Pipeline):
    """Answers a list of questions, each about its own context."""

    def __init__(self, path: str, gpu: bool = True, minscore: float = 0.05):
        """Load the model. Answers that score below `minscore` count as none, as in txtai."""
        self.reader = Reader.load(path, device="auto" if gpu else "cpu")
        self.minscore = minscore

    def __call__(self, questions: list[str], contexts: list[str]) -> list[str | None]:
        """The answer to each question; None where its context has none, or where either is empty."""
        asked = []
        for row, (question, context) in enumerate(zip(questions, contexts, strict=True)):
            if question and context:
                asked.append((row, question, context))
        pairs = ((question, context) for _, question, context in asked)
        answers: list[str | None] = [None] * len(questions)
        for (row, _, _), answer in zip(asked, self.reader.answer_many(pairs), strict=True):
            if answer.answer and answer.score >= self.minscore:
                answers[row] = answer.answer
        return answers
