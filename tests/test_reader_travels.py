"""A Reader in other threads and processes: pickled, copied, forked, asked by many at once."""

import copy
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT

from bertqa import Answer, Reader, UserError, answering
from bertqa.data.tokenizer import WordPiece
from bertqa.model import folder, prepack

QUESTION = ("where is a?", "a b c d " * 40)


@pytest.fixture
def reader(tiny_model):
    return Reader.load(tiny_model, "cpu")


# ---- copies ----


def test_a_loaded_reader_is_pickled_as_what_it_was_loaded_from(reader, tiny_model, monkeypatch):
    answer = reader.answer(*QUESTION, top_k=3)
    content = pickle.dumps(reader)
    assert len(content) < 2000
    monkeypatch.chdir(tiny_model.parent)
    named = Reader.load(tiny_model.name, "cpu")  # a relative name means another folder elsewhere
    monkeypatch.chdir("/")
    for made in (pickle.loads(content), pickle.loads(pickle.dumps(named))):
        assert made.answer(*QUESTION, top_k=3) == answer
    made.qa["null_threshold"] = -1e9
    assert pickle.loads(pickle.dumps(made)).answer(*QUESTION).answer == ""


def test_a_pickle_in_a_process_of_its_own(reader, tmp_path):
    (tmp_path / "reader").write_bytes(pickle.dumps(reader))
    code = (
        "import pickle, sys; reader = pickle.load(open(sys.argv[1], 'rb')); "
        f"print(reader.answer(*{QUESTION!r}))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "reader"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert said.stdout.strip() == str(reader.answer(*QUESTION)), said.stderr


def test_a_model_of_ones_own_is_pickled_by_value(reader, tiny_model):
    own = Reader(folder.load(tiny_model), reader.tokenizer)
    assert len(pickle.dumps(own)) > 20_000
    assert pickle.loads(pickle.dumps(own)).answer(*QUESTION) == own.answer(*QUESTION)
    other = folder.load(tiny_model)
    with torch.no_grad():
        other.span.weight += 1.0
    reader.model = other  # is not what was loaded any more
    assert pickle.loads(pickle.dumps(reader)).answer(*QUESTION) == reader.answer(*QUESTION)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_by_value_it_travels_in_16_bits_where_these_hold_all(tiny_model, dtype):
    model = folder.load(tiny_model)
    sizes = []
    for exact in (False, True):
        if exact:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(parameter.to(dtype).float())
        reader = Reader(prepack.pack(model), WordPiece.load(tiny_model))
        content = pickle.dumps(reader)
        made = pickle.loads(content)
        assert made.answer(*QUESTION) == reader.answer(*QUESTION)
        assert {p.dtype for p in made.model.parameters()} == {torch.float32}
        sizes.append(len(content))
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert sizes[0] - sizes[1] > 1.8 * weights


def test_a_deep_copy_is_another(reader):
    answer = reader.answer(*QUESTION)
    made = copy.deepcopy(reader)
    assert made.answer(*QUESTION) == answer and len(pickle.dumps(made)) < 2000
    made.qa["null_threshold"] = -1e9
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.zero_()
    assert made.answer(*QUESTION).answer == "" and reader.answer(*QUESTION) == answer


def test_what_it_has_read_does_not_change_what_it_is(reader):
    """datasets and others tell by a hash of the pickle whether a function has changed."""

    def hashed():
        return hashlib.sha256(pickle.dumps(reader)).hexdigest()

    before = hashed()
    reader.answer("where is a?", "a b c " * 2000)  # long enough to be kept
    reader.submit(*QUESTION).result(60)
    assert len(reader.tokenizer.kept) == 1 and hashed() == before
    assert pickle.dumps(pickle.loads(pickle.dumps(reader))) == pickle.dumps(reader)


# ---- forks ----


def in_child(do, seconds=60):
    """What `do` returns in a forked child, as text; kills a child that hangs."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(into, str(do()).encode())
        except BaseException as error:
            os.write(into, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(into)
    deadline = time.monotonic() + seconds
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hangs"
        time.sleep(0.02)
    with open(out, "rb") as file:
        return file.read().decode()


FORKED = """
import os, sys
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(2)
from bertqa import Reader
from test_reader_travels import QUESTION, in_child
reader = Reader.load({model!r}, "cpu")
question = ("where is a?", "a b c d " * 4000)      # enough for both threads
answer = reader.answer(*question)
reader.submit(*question).result(60)
assert torch.get_num_threads() == 2
print(in_child(lambda: reader.answer(*question)) == str(answer))
print(in_child(lambda: reader.submit(*question).result(60)) == str(answer))
reader.tokenizer.lock.acquire()                    # as another thread may hold it just then
print(in_child(lambda: reader.answer(*question)) == str(answer))
reader.tokenizer.lock.release()
print(reader.answer(*question) == answer and torch.get_num_threads() == 2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_reader_answers(tiny_model):
    code = FORKED.format(tests=str(ROOT / "tests"), model=str(tiny_model))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert said.stdout.split() == ["True"] * 4, said.stdout + said.stderr


def test_a_reader_on_a_gpu_says_that_it_cannot_be_forked(reader):
    reader.device = torch.device("cuda")
    said = in_child(lambda: reader.answer(*QUESTION))
    assert said.startswith("UserError: this model is on a GPU and came here by a fork")


# ---- many at once ----


def test_what_is_asked_at_the_same_time_is_answered_together(reader, monkeypatch):
    pairs = [(f"where is {a}?", f"{a} b c {a} d") for a in "aceg" * 25]
    alone = [reader.answer(*pair) for pair in pairs]
    lots, rank = [], reader.rank
    gate = threading.Event()

    def slow(chunk, how):
        gate.wait(60)
        lots.append(len(chunk))
        return rank(chunk, how)

    monkeypatch.setattr(reader, "rank", slow)
    futures = [reader.submit(*pair) for pair in pairs]
    gate.set()
    for future, answer in zip(futures, alone, strict=True):
        found = future.result(60)
        assert found.answer == answer.answer and found.score == pytest.approx(answer.score)
    assert sum(lots) == 100 and len(lots) <= 4 and max(lots) == answering.AT_ONCE


def test_options_and_mistakes_are_each_ones_own(reader):
    listed = reader.submit(*QUESTION, top_k=3)
    silent = reader.submit(*QUESTION, threshold=-1e9)
    wrong = reader.submit("where is a?", None)
    plain = reader.submit(*QUESTION)
    assert listed.result(60) == reader.answer(*QUESTION, top_k=3)
    assert silent.result(60).answer == "" != plain.result(60).answer
    with pytest.raises(UserError, match="give .question, context"):
        wrong.result(60)
    with pytest.raises(UserError, match="top_k is 0"):
        reader.submit(*QUESTION, top_k=0)


def test_an_error_is_theirs_who_asked_and_the_next_are_answered(reader, monkeypatch):
    rank = reader.rank

    def failing(chunk, how):
        monkeypatch.setattr(reader, "rank", rank)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(reader, "rank", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        reader.submit(*QUESTION).result(60)
    assert reader.submit(*QUESTION).result(60) == reader.answer(*QUESTION)


def test_the_queue_is_bounded(reader, monkeypatch):
    monkeypatch.setattr(answering, "AT_ONCE", 1)
    reader.requests.waiting.maxsize = 3
    gate, rank = threading.Event(), reader.rank
    monkeypatch.setattr(reader, "rank", lambda *args: gate.wait(60) and rank(*args))
    with ThreadPoolExecutor(20) as pool:
        puts = [pool.submit(reader.submit, *QUESTION) for _ in range(20)]
        time.sleep(0.3)
        assert sum(put.done() for put in puts) == 4  # three wait, one is being answered
        gate.set()
        answers = [put.result(60).result(60) for put in puts]
    assert len(answers) == 20 and len(set(answers)) == 1


def test_the_thread_ends_when_nothing_is_asked_and_begins_again(reader):
    for _ in range(2):
        reader.submit(*QUESTION).result(60)
        deadline = time.monotonic() + 30
        while any(t.name == "bertqa requests" for t in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_request_may_be_cancelled(reader):
    gate = threading.Event()
    future: Future = reader.submit(*QUESTION)
    future.add_done_callback(lambda _: gate.wait(60))  # holds the thread
    others = [reader.submit(*QUESTION) for _ in range(3)]
    cancelled = others[1].cancel()
    gate.set()
    assert others[0].result(60) == others[2].result(60)
    assert others[1].cancelled() == cancelled


def test_threads_may_share_a_stream_of_answers(reader):
    pairs = [(f"where is {a}?", f"{a} b c") for a in "abcdefgh" * 40]
    answers, found = reader.answer_many(iter(pairs)), []

    def take():
        for answer in answers:
            found.append(answer)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(pairs)
    expected = reader.answer_many(pairs)
    assert sorted(map(str, found)) == sorted(map(str, expected))


# ---- bad pairs ----


def test_bad_pairs_are_kept_in_their_place(reader):
    pairs = [("where is a?", "a b"), None, ("where is b?", None), ("where is a?", ["a b", ""])]
    found = list(reader.answer_many(pairs, on_error="keep"))
    assert [answer.error[:6] for answer in found] == ["", "pair 2", "pair 3", ""]
    assert [answer.answer != "" for answer in found] == [True, False, False, True]
    assert all(isinstance(answer, Answer) for answer in found)
    assert [len(answers) for answers in reader.answer_many(pairs, 2, on_error="keep")][1] == 1
    answers = reader.answer_many(pairs)
    assert next(answers) == found[0]
    with pytest.raises(UserError, match="pair 2 is None"):
        next(answers)
    with pytest.raises(UserError, match="on_error is 'skip'"):
        reader.answer_many(pairs, on_error="skip")
    assert list(reader.answer_many([None, 3], on_error="keep"))[1].error.startswith("pair 2 is 3")
