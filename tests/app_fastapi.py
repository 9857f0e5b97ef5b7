"""A service that answers questions: uvicorn app_fastapi:app"""

from fastapi import FastAPI
from pydantic import BaseModel

from bertqa import Reader

app, reader = FastAPI(), Reader.load("weights/minilm-squad2")


class Question(BaseModel):
    question: str
    context: str | list[str]


@app.post("/answer")
def answer(asked: Question):
    return reader.submit(asked.question, asked.context).result()
