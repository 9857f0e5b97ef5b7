"""A page that answers questions about a pasted text: streamlit run app_streamlit.py"""

import streamlit as st

from bertqa import Reader


@st.cache_resource  # one reader for all sessions and reruns
def load() -> Reader:
    return Reader.load("weights/minilm-squad2")


text = st.text_area("Text", "Agnes Holm kept the lamp for thirty years.")
question = st.text_input("Question", "Who kept the lamp?")
if text.strip() and question.strip():
    answer = load().answer(question, text)
    st.write(answer.answer or "The text has no answer.")
    st.caption(f"score {answer.score:.3f}, characters {answer.start} to {answer.end}")
