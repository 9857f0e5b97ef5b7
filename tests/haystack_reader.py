"""A reader for Haystack 2: copy this file beside your pipeline. Documents in, extracted answers out.

    pipeline.add_component("reader", BertqaReader("weights/minilm-squad2"))
    pipeline.connect("retriever.documents", "reader.documents")

It gives BERT its segments, which Haystack's own ExtractiveReader does not: of SQuAD questions a fifth more are right.
"""

from haystack import Document, ExtractedAnswer, component, default_from_dict, default_to_dict

from bertqa import Reader


@component
class BertqaReader:
    """The `top_k` best answers to a query over all documents; with `no_answer` the last resort is none."""

    def __init__(self, model: str, top_k: int = 5, no_answer: bool = True, device: str = "auto"):
        self.model, self.top_k, self.no_answer, self.device = model, top_k, no_answer, device
        self.reader: Reader | None = None

    def warm_up(self) -> None:
        """Load the model, once; Haystack calls it before the first run."""
        if self.reader is None:
            self.reader = Reader.load(self.model, device=self.device)

    @component.output_types(answers=list[ExtractedAnswer])
    def run(self, query: str, documents: list[Document], top_k: int | None = None):
        """The answers, best first; an answer without a document says that there is none."""
        self.warm_up()
        readable = [document for document in documents if document.content]
        if not readable:
            return {"answers": []}
        texts = [document.content for document in readable]
        count = top_k or self.top_k
        found = self.reader.answer(query, texts, count, allow_no_answer=self.no_answer)
        answers = []
        for answer in found if count > 1 else [found]:
            place = ExtractedAnswer.Span(answer.start, answer.end)
            silent = answer.answer == ""
            answers.append(
                ExtractedAnswer(
                    query=query,
                    score=answer.score,
                    data=answer.answer or None,
                    document=None if silent else readable[answer.document],
                    document_offset=None if silent else place,
                )
            )
        return {"answers": answers}

    def to_dict(self) -> dict:
        names = ("model", "top_k", "no_answer", "device")
        return default_to_dict(self, **{name: getattr(self, name) for name in names})

    @classmethod
    def from_dict(cls, data: dict) -> "BertqaReader":
        return default_from_dict(cls, data)
