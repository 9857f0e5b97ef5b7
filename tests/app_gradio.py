"""A page that answers questions about a pasted text: python app_gradio.py"""

import gradio as gr

from bertqa import Reader

reader = Reader.load("weights/minilm-squad2")


def ask(text: str, question: str) -> tuple[str, float]:
    """The answer and its score."""
    answer = reader.answer(question, text)
    return answer.answer or "The text has no answer.", round(answer.score, 3)


app = gr.Interface(ask, [gr.Textbox(lines=8), gr.Textbox()], [gr.Textbox(), gr.Number()])

if __name__ == "__main__":
    app.launch()
