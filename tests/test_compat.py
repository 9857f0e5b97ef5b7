"""The old pipeline's call, and the adapters for Haystack and txtai against stand-ins of those packages."""

import importlib
import runpy
import sys
import types
import warnings
from dataclasses import asdict, dataclass

import pytest
from servers import ROOT

from bertqa import Reader
from bertqa.compat import pipeline
from bertqa.errors import UserError

FOLDER = ROOT / "weights" / "minilm-squad2"
pytestmark = pytest.mark.skipif(
    not (FOLDER / "model.safetensors").exists(), reason="the bundled reader is missing"
)
LAMP = "Agnes Holm kept the lamp for thirty years. An electric one replaced it in 1931."
WHO, HOW_LONG = "Who kept the lamp?", "How long did Agnes Holm keep the lamp?"
NOBODY = "What is the capital of France?"


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader.load(FOLDER, device="cpu")


@pytest.fixture(scope="module")
def ask(reader):
    return pipeline("question-answering", model=reader)


def test_it_returns_the_old_dictionaries(ask, reader):
    found = ask(question=WHO, context=LAMP)
    assert list(found) == ["score", "start", "end", "answer"]
    assert found["answer"] == "Agnes Holm" == LAMP[found["start"] : found["end"]]
    expected = reader.answer(
        WHO, LAMP, allow_no_answer=False, max_answer_length=15, whole_words=True
    )
    assert found == {key: value for key, value in asdict(expected).items() if key in found}


def test_every_way_to_call_it(ask):
    one = ask(question=WHO, context=LAMP)
    two = ask(question=HOW_LONG, context=LAMP)
    record, other = {"question": WHO, "context": LAMP}, {"question": HOW_LONG, "context": LAMP}
    assert ask(record) == ask([record]) == ask(data=record) == one
    assert ask([record, other]) == ask(record, other) == [one, two]
    assert ask(question=[WHO, HOW_LONG], context=[LAMP, LAMP]) == [one, two]
    assert ask(question=[WHO, HOW_LONG], context=LAMP) == [one, two]


def test_its_options(ask, reader):
    several = ask(question=WHO, context=LAMP, top_k=3)
    assert len(several) == 3 and several[0]["answer"] == "Agnes Holm"
    assert several[0]["score"] >= several[1]["score"]
    assert ask(question=WHO, context=LAMP, topk=3) == several
    silent = ask(question=NOBODY, context=LAMP, handle_impossible_answer=True)
    assert (silent["answer"], silent["start"], silent["end"]) == ("", 0, 0)
    assert ask(question=NOBODY, context=LAMP)["answer"] != ""
    short = ask(question=HOW_LONG, context=LAMP, max_answer_len=1)
    assert " " not in short["answer"]
    assert ask(question="When?", context="In 19312b.", align_to_words=True)["answer"][-1] in "b."
    once_for_all = pipeline(model=reader, top_k=2)
    assert len(once_for_all(question=WHO, context=LAMP)) == 2


def test_what_means_nothing_is_named(ask, reader):
    with pytest.warns(UserWarning, match="max_seq_len, doc_stride: taken as the model was trained"):
        ask(question=WHO, context=LAMP, max_seq_len=384, doc_stride=128)
    with pytest.warns(UserWarning, match="padding, batch_size: means nothing here"):
        ask(question=WHO, context=LAMP, padding="longest", batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(question=WHO, context=LAMP, top_k=1)


def test_mistakes(ask):
    with pytest.raises(UserError, match="'summarization' is not a task of bertqa"):
        pipeline("summarization")
    with pytest.raises(TypeError, match="unknown arguments: temperature"):
        ask(question=WHO, context=LAMP, temperature=1)
    with pytest.raises(TypeError, match="give question= and context="):
        ask(question=WHO)
    with pytest.raises(ValueError, match="2 questions, but 1 contexts"):
        ask(question=[WHO, WHO], context=[LAMP])
    with pytest.raises(TypeError, match="each question must be"):
        ask([WHO])


def test_devices_and_names(monkeypatch):
    given = []
    monkeypatch.setattr(Reader, "load", lambda name, device, dtype: given.append((device, dtype)))
    for device in (-1, 0, "cuda:1", None):
        pipeline(model="x", device=device, torch_dtype="bf16")
    assert given == [("cpu", "bf16"), ("cuda:0", "bf16"), ("cuda:1", "bf16"), (None, "bf16")]


# ---- adapters, against stand-ins


@dataclass
class Document:
    content: str | None


@dataclass
class ExtractedAnswer:
    query: str
    score: float
    data: str | None
    document: Document | None = None
    context: str | None = None
    document_offset: object = None

    @dataclass
    class Span:
        start: int
        end: int


def component(cls):
    return cls


component.output_types = lambda **types: lambda method: method


@pytest.fixture
def haystack(monkeypatch):
    module = types.ModuleType("haystack")
    module.Document, module.ExtractedAnswer, module.component = Document, ExtractedAnswer, component
    module.default_to_dict = lambda self, **parameters: {"init_parameters": parameters}
    module.default_from_dict = lambda cls, data: cls(**data["init_parameters"])
    monkeypatch.setitem(sys.modules, "haystack", module)
    monkeypatch.delitem(sys.modules, "haystack_reader", raising=False)
    return importlib.import_module("haystack_reader")


def test_haystack(haystack):
    made = haystack.BertqaReader(str(FOLDER), top_k=2, device="cpu")
    made = haystack.BertqaReader.from_dict(made.to_dict())
    documents = [Document(None), Document("It rained all day."), Document(LAMP)]
    first, second = made.run(query=WHO, documents=documents)["answers"]
    assert first.data == "Agnes Holm" and first.document is documents[2]
    assert first.document_offset == ExtractedAnswer.Span(0, 10) and first.score > second.score
    (silent,) = made.run(query=NOBODY, documents=documents, top_k=1)["answers"]
    assert (silent.data, silent.document, silent.document_offset) == (None, None, None)
    assert made.run(query=WHO, documents=[Document(None)]) == {"answers": []}


def test_txtai(monkeypatch):
    package, module = types.ModuleType("txtai"), types.ModuleType("txtai.pipeline")
    module.Pipeline = type("Pipeline", (), {})
    monkeypatch.setitem(sys.modules, "txtai", package)
    monkeypatch.setitem(sys.modules, "txtai.pipeline", module)
    monkeypatch.delitem(sys.modules, "txtai_questions", raising=False)
    questions = importlib.import_module("txtai_questions").Questions(str(FOLDER), gpu=False)
    found = questions([WHO, "", HOW_LONG, NOBODY], [LAMP, LAMP, LAMP, LAMP])
    assert found == ["Agnes Holm", None, "thirty years", None]


@pytest.mark.parametrize("name", ["haystack_reader.py", "txtai_questions.py"])
def test_adapters_are_short(name):
    assert len((ROOT / "tests" / name).read_text().splitlines()) <= 60


# ---- small apps, against stand-ins where the packages are not installed


def test_the_streamlit_app(monkeypatch):
    said = []
    stand_in = types.ModuleType("streamlit")
    stand_in.cache_resource = lambda function: function
    stand_in.text_area = stand_in.text_input = lambda label, value: value
    stand_in.write = stand_in.caption = said.append
    monkeypatch.setitem(sys.modules, "streamlit", stand_in)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "tests" / "app_streamlit.py"))
    assert said[0] == "Agnes Holm" and said[1].endswith("characters 0 to 10")


def test_the_streamlit_app_in_streamlit(monkeypatch):
    testing = pytest.importorskip("streamlit.testing.v1")
    monkeypatch.chdir(ROOT)
    app = testing.AppTest.from_file(str(ROOT / "tests" / "app_streamlit.py")).run(timeout=60)
    assert not app.exception and app.markdown[0].value == "Agnes Holm"


@pytest.mark.parametrize("installed", [False, True])
def test_the_gradio_app(monkeypatch, installed):
    if installed:
        pytest.importorskip("gradio")
    else:
        stand_in = types.ModuleType("gradio")
        stand_in.Textbox = stand_in.Number = lambda lines=1: None
        stand_in.Interface = lambda function, inputs, outputs: types.SimpleNamespace(fn=function)
        monkeypatch.setitem(sys.modules, "gradio", stand_in)
    monkeypatch.chdir(ROOT)
    made = runpy.run_path(str(ROOT / "tests" / "app_gradio.py"))
    assert made["app"].fn(LAMP, WHO)[0] == "Agnes Holm"


def test_the_fastapi_app(monkeypatch):
    fastapi, pydantic = types.ModuleType("fastapi"), types.ModuleType("pydantic")
    fastapi.FastAPI = type("FastAPI", (), {"post": lambda self, path: lambda function: function})
    pydantic.BaseModel = object
    monkeypatch.setitem(sys.modules, "fastapi", fastapi)
    monkeypatch.setitem(sys.modules, "pydantic", pydantic)
    monkeypatch.chdir(ROOT)
    made = runpy.run_path(str(ROOT / "tests" / "app_fastapi.py"))
    asked = types.SimpleNamespace(question=WHO, context=["It rained.", LAMP])
    answer = made["answer"](asked)
    assert answer.answer == "Agnes Holm" and answer.document == 1
