"""The Reader and the predict verb: files, one question, thresholds, long and odd texts."""

import dataclasses
import io
import json
import os
import re
import select
import signal
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from bertqa import Answer, Reader, UserError, inference, prompt
from bertqa.answer_lines import answer_lines, as_they_come
from bertqa.data.examples import read_examples
from bertqa.model import folder, prepack
from bertqa.predict import main
from bertqa.qa.answers import prediction_files
from bertqa.qa.spans import SpanDecoder, SpanSettings
from bertqa.score import main as score


@pytest.fixture(scope="module")
def reader(tiny_model):
    made = Reader.load(tiny_model)
    made.qa.update(max_length=32, overlap=4, max_question=8)
    return made


def test_answers_are_cut_from_the_text(reader):
    for context in ("a b c d e f", "x " * 500, "Ä É 東京 a b", "a"):
        answer = reader.answer("where is a?", context, allow_no_answer=False)
        assert (
            isinstance(answer, Answer) and answer.answer == context[answer.start : answer.end] != ""
        )
        assert 0 < answer.score <= 1
    assert set(dataclasses.asdict(answer)) == {
        *("answer", "score", "start", "end", "document"),
        *("confidence", "no_answer"),
    }


@pytest.mark.parametrize("context", ["", "   ", "\n\t", "\u200b"])
def test_nothing_to_answer_from(reader, context):
    assert reader.answer("where is a?", context).answer == ""
    assert reader.answer("where is a?", context, allow_no_answer=False).answer == ""


def test_top_k_is_sorted_distinct_and_sums_below_one(reader):
    answers = reader.answer("where is a?", "a b c d e f g", top_k=5, allow_no_answer=False)
    assert len(answers) == 5 == len({a.answer for a in answers})
    scores = [a.score for a in answers]
    assert scores == sorted(scores, reverse=True) and sum(scores) <= 1 + 1e-9


def test_the_threshold_decides(reader):
    assert reader.answer("where is a?", "a b c", threshold=-1e9).answer == ""
    assert reader.answer("where is a?", "a b c", threshold=1e9).answer != ""


def test_many_keep_their_order_and_equal_one_by_one(reader, monkeypatch):
    monkeypatch.setattr("bertqa.answering.QUESTIONS_AT_ONCE", 4)
    pairs = [("where is a?", "a " + "b c d " * n) for n in (9, 1, 30, 2, 5, 0, 7)]
    many = list(reader.answer_many(iter(pairs), allow_no_answer=False))
    for (question, context), answer in zip(pairs, many, strict=True):
        alone = reader.answer(question, context, allow_no_answer=False)
        assert (answer.answer, answer.start) == (alone.answer, alone.start)
        assert answer.score == pytest.approx(alone.score, abs=1e-6)


def test_files_in_files_out_and_scored(tmp_path, tiny_model, letters, capsys):
    qa = {"max_length": 32, "overlap": 4, "max_question": 8, "null_threshold": 0.5}
    model = tmp_path / "model"
    folder.save(model, folder.load(tiny_model), tokenizer_from=tiny_model, provenance={}, qa=qa)
    out = tmp_path / "out"
    asked = ["--model", str(model), "--data", str(letters), "--n-best", "20"]
    assert main([*asked, "--out", str(out)]) == 0
    predictions = json.loads((out / "predictions.json").read_text())
    odds = json.loads((out / "null_odds.json").read_text())
    ranked = json.loads((out / "nbest_predictions.json").read_text())
    assert list(predictions) == [f"q{n}" for n in range(53)] == list(odds) == list(ranked)
    assert all((predictions[q] == "") == (odds[q] > 0.5) for q in odds)
    assert {"text", "probability", "start_logit", "end_logit"} <= ranked["q0"][0].keys()
    capsys.readouterr()
    assert (
        score(
            [
                str(letters),
                str(out / "predictions.json"),
                "--na-prob-file",
                str(out / "null_odds.json"),
            ]
        )
        == 0
    )
    assert {"exact", "f1", "total", "best_f1"} <= json.loads(capsys.readouterr().out).keys()
    assert (
        main(
            [
                "--model",
                str(model),
                "--data",
                str(letters),
                "--out",
                str(tmp_path / "always"),
                "--threshold",
                "none",
            ]
        )
        == 0
    )
    always = json.loads((tmp_path / "always" / "predictions.json").read_text())
    assert "" not in always.values()
    assert not (tmp_path / "always" / "nbest_predictions.json").exists()


def test_one_question_from_arguments_file_and_pipe(tmp_path, tiny_model, capsys, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("a b c d")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a b c d")))
    said = []
    for source in (
        ["--context", "a b c d"],
        ["--context-file", str(text)],
        ["--context-file", "-"],
    ):
        assert (
            main(
                [
                    "--model",
                    str(tiny_model),
                    "--question",
                    "where is a?",
                    *source,
                    "--json",
                    "--threshold",
                    "none",
                    "--top-k",
                    "2",
                ]
            )
            == 0
        )
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2] and len(said[0].splitlines()) == 2
    assert json.loads(said[0].splitlines()[0])["answer"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "give either --data"),
        (["--data", "x.json"], "needs --out"),
        (["--question", "q"], "needs a text"),
        (["--question", "q", "--context", "c", "--context-file", "f"], "two texts"),
        (["--question", "q", "--jsonl"], "leave out --question"),
        (["--context-file", "-", "--jsonl"], "both read"),
        (["--data", "x.json", "--out", "o", "--question", "q"], "give either --data"),
        (["--question", "q", "--context", "c", "--threshold", "low"], "give a number, or none"),
        (["--question", "q", "--context", "c", "--threshold", "nan"], "give a number, or none"),
        (["--question", "q", "--context", "c", "--top-k", "0"], "give 1 or more"),
        (["--context", " "], "is empty"),
        (["--question", "q", "--context", ""], "is empty"),
        (["--question", " ", "--context", "c"], "--question is empty"),
        (["--question", ""], "needs a text"),
        (
            ["--question", "q", "--context", "c", "--limit", "3"],
            "--limit: has no effect without --data",
        ),
        (
            ["--data", "x.json", "--out", "o", "--top-k", "2", "--json"],
            "--json, --top-k: has no effect with --data",
        ),
    ],
)
def test_mistakes_are_explained(tiny_model, argv, says):
    with pytest.raises(UserError, match=says):
        main(["--model", str(tiny_model), *argv])


def test_an_encoder_cannot_answer(tmp_path, tiny_model):
    folder.save(
        tmp_path / "bare", folder.load_encoder(tiny_model), tokenizer_from=tiny_model, provenance={}
    )
    with pytest.raises(UserError, match="its head is None"):
        Reader.load(tmp_path / "bare")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_questions_from_a_pipe_give_a_line_each(tiny_model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("where is a?\n\n  where is b?\n"))
    assert main(["--model", str(tiny_model), "--context", "a b c d", "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(said) == 2 and all(
        "a b c d"[one["start"] : one["end"]] == one["answer"] != "" for one in said
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("where is a?"))
    assert main(["--model", str(tiny_model), "--context", "a b c d"]) == 0
    assert re.fullmatch(
        r"[abcd ]+   \[score 0\.\d{3}, characters \d to \d\]\n", capsys.readouterr().out
    )


def test_questions_from_a_pipe_that_are_not_utf_8_are_refused(tiny_model, capsys, monkeypatch):
    """Under many a locale Python puts stand-ins for what it cannot decode, and the question would be another."""
    piped = io.BytesIO("where is a?\n\noù est b?\n".encode("latin-1"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(piped, errors="surrogateescape"))
    with pytest.raises(UserError) as caught:
        main(["--model", str(tiny_model), "--context", "a b c d"])
    assert "standard input: line 3: not UTF-8: byte 0xf9" in str(caught.value)
    assert len(capsys.readouterr().out.splitlines()) == 1


class Pty:
    """`python -m bertqa.predict` on a pseudo-terminal of a width; `expect` reads until a text is shown, `leave` to the end."""

    def __init__(self, columns: int, *argv, env=()):
        import fcntl
        import pty
        import termios

        self.pid, self.terminal = pty.fork()
        if not self.pid:
            hidden = (
                "COLUMNS",
                "NO_COLOR",
            )  # readline sets the first one, unseen by os.environ: hence execve
            kept = {name: value for name, value in os.environ.items() if name not in hidden}
            try:
                signal.signal(
                    signal.SIGINT, signal.SIG_DFL
                )  # a shell's background jobs, and what they start, ignore it
                os.chdir(Path(__file__).resolve().parents[1])
                os.execve(
                    sys.executable,
                    [sys.executable, *argv],
                    {**kept, "TERM": "xterm", "OMP_NUM_THREADS": "1", **dict(env)},
                )
            finally:
                os._exit(99)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.shown, self.seen = "", 0

    def read(self, deadline: float) -> bool:
        """Take what is there; False at the end of output."""
        if not select.select([self.terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"nothing more comes behind {self.shown!r}")
        try:
            data = os.read(self.terminal, 1 << 16)
        except OSError:  # Linux says so when the other side is closed
            return False
        self.shown += data.decode().replace("\r\n", "\n")
        return bool(data)

    def expect(self, text: str, seconds: float = 300) -> str:
        deadline = time.monotonic() + seconds
        while text not in self.shown[self.seen :]:
            assert self.read(deadline), f"ended without {text!r}: {self.shown!r}"
        begin, self.seen = self.seen, self.shown.index(text, self.seen) + len(text)
        return self.shown[begin : self.seen]

    def type(self, text: str) -> None:
        time.sleep(0.2)  # input() has shown its prompt, and now sets the terminal up
        os.write(self.terminal, text.encode())

    def leave(self) -> tuple[int, str]:
        """(exit status, what was shown since the last `expect`)."""
        while self.read(time.monotonic() + 300):
            pass
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), self.shown[self.seen :]


TEXT = "It rained. Ada Lovelace came to the long white house by the sea at noon, with all of her seven sisters. He left."


@pytest.fixture
def at_terminal():
    pytest.importorskip("pty", reason="pseudo-terminals are a Unix thing")
    model = Path(__file__).resolve().parents[1] / "weights" / "minilm-squad2"
    if not (model / "model.safetensors").exists():
        pytest.skip("the bundled reader is not there")
    return lambda columns, *argv, **env: Pty(
        columns, "-m", "bertqa.predict", "--model", str(model), *argv, env=env.items()
    )


@pytest.mark.parametrize(
    "leaving", ["\x04", "\x03", "half a que\x03", "\n"]
)  # Ctrl-D, Ctrl-C, an empty line
def test_a_session_at_a_real_terminal(at_terminal, tmp_path, leaving):
    (tmp_path / "text.txt").write_text(TEXT)
    terminal = at_terminal(40, "--context-file", str(tmp_path / "text.txt"), "--threshold", "none")
    assert "Ask about them" in terminal.expect("\n? ")
    terminal.type("Who came to the house?\n")
    said = terminal.expect("\n? ")
    assert (
        f"{prompt.BOLD}Ada Lovelace{prompt.PLAIN} came to the long white\n" in said
        and "rained" not in said
    )
    sure = r"\033\[2m(confidence 0\.\d{3},\s)?score 0\.\d{3}\s{3}then:\s"
    assert re.search(sure, said)
    lines = re.sub(r"\033\[[0-9;?]*[a-z]", "", said).splitlines()
    assert max(map(len, lines)) < 40 and len(lines) > 5
    if leaving == "\x04":
        terminal.type("How many sisters?\n")
        assert f"{prompt.BOLD}seven{prompt.PLAIN}" in terminal.expect("\n? ")
    terminal.type(leaving)
    status, rest = terminal.leave()
    assert status == 0 and "Traceback" not in rest and rest.endswith("\n")


def test_a_text_pasted_at_a_real_terminal_without_colours(at_terminal):
    terminal = at_terminal(80, "--threshold", "none", NO_COLOR="1")
    terminal.expect("Ctrl-D.\n")
    terminal.type(TEXT + "\n")
    terminal.type("\x04")
    terminal.expect("\n? ")
    terminal.type("Who came to the house?\n")
    assert "\n[Ada Lovelace] came to the" in terminal.expect("\n? ")
    terminal.type("\x04")
    status, _ = terminal.leave()
    assert status == 0 and prompt.BOLD not in terminal.shown and prompt.FAINT not in terminal.shown


def test_ctrl_c_while_pasting(at_terminal):
    terminal = at_terminal(80)
    terminal.expect("Ctrl-D.\n")
    terminal.type("It rained.\n\x03")
    status, rest = terminal.leave()
    assert status == 130 and "Traceback" not in rest and rest.endswith("\ninterrupted\n")


@pytest.mark.parametrize("ending", ["\n", ""])  # an empty line, or Ctrl-D
def test_a_terminal_is_asked_again_until_an_empty_line(tiny_model, monkeypatch, ending):
    monkeypatch.setattr("sys.stdin", Terminal(f"where is a?\nwhere is b?\n{ending}"))
    monkeypatch.setattr("sys.stdout", out := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["--model", str(tiny_model), "--context", "a b c d"]) == 0
    assert out.getvalue().count("? ") == 3 and out.getvalue().count(prompt.BOLD) == 2
    assert out.getvalue().count("score 0.") == 2 and "   then: " in out.getvalue()


def test_a_text_is_pasted_at_the_terminal(tiny_model, monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal("x y z\n\na b c\n.\nwhere is a?\n"))
    monkeypatch.setattr("sys.stdout", out := Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["--model", str(tiny_model)]) == 0
    assert "score 0." in out.getvalue() and "\033" not in out.getvalue()
    monkeypatch.setattr("sys.stdin", Terminal(" \n.\n"))
    with pytest.raises(UserError, match="no text to ask about"):
        main(["--model", str(tiny_model)])


def test_the_answer_is_marked_in_its_sentence():
    text = "It rained (a lot!). Dr.\x1b[31m Ada came at noon. He left."
    start = text.index("Ada")
    shown = prompt.in_sentence(
        [Answer("Ada", 0.75, start, start + 3), Answer("", 0.125, 0, 0)], text, False
    )
    assert shown == "Dr. [31m [Ada] came at noon.\nscore 0.750   then: no answer (0.125)"
    coloured = prompt.in_sentence([Answer("Ada", 0.75, start, start + 3)], text, True)
    assert coloured.count("\033[") == 4 and "\033[31m" not in coloured
    assert prompt.in_sentence([Answer("", 0.5, 0, 0)], text, False).startswith(
        "(no answer in this text)\n"
    )
    narrow = prompt.in_sentence([Answer("Ada", 0.75, start, start + 3)], text, False, 12)
    assert (
        narrow == "Dr. [31m\n[Ada] came\nat noon.\nscore 0.750"
        and prompt.wrap("a" * 9 + " b", 4) == "a" * 9 + "\nb"
    )
    assert prompt.in_sentence(
        [Answer("", 0.5, 0, 0), Answer("b", 0.25, 0, 1)], "b", False
    ).endswith("score 0.500   nearest: b (0.250)")
    for context, answer, around in [
        ("one\ntwo three\nfour", "three", "two three"),
        ("a? b! c", "b", "b!"),
        ("b", "b", "b"),
        ("x" * 999 + "b" + "y" * 999, "b", "x" * 300 + "b" + "y" * 300),
        ("甲。乙丙。丁", "丙", "乙丙。"),
        ("It is v1.2 now", "1.2", "It is v1.2 now"),
        (f"{'w ' * 30}\nb\n\nz", "b", f"{'w ' * 30}\nb"),
        (f"{'w ' * 30}b \n{'v ' * 30}\n\nz", "b", f"{'w ' * 30}b \n{'v ' * 30}"),
    ]:
        place = context.index(answer)
        begin, end = prompt.sentence(context, place, place + len(answer))
        assert context[begin:end] == around


def test_json_lines_in_and_out(tiny_model, capsys, monkeypatch):
    rows = [
        {"id": 7, "question": "where is a?", "context": "a b c"},
        {"question": "where is b?"},
        {"id": None, "question": "where is c?", "context": ["d e", "a c"], "more": 1},
    ]
    text = "\n\n".join(json.dumps(row) for row in rows)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["--model", str(tiny_model), "--jsonl", "--context", "x y"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    fields = ["answer", "score", "start", "end", "document", "confidence", "no_answer"]
    assert [list(one) for one in said] == [["id", *fields], fields, ["id", *fields]]
    assert said[0]["id"] == 7 and said[2]["id"] is None and said[1]["answer"] in ("x", "y", "x y")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(rows[0])))
    assert main(["--model", str(tiny_model), "--jsonl", "--top-k", "2"]) == 0
    (said,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(said["answers"]) == 2 and said["answers"][0] == {name: said[name] for name in fields}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 3: not JSON"),
        ("[1]", "line 3: a JSON list"),
        ('{"context": "a"}', "line 3: question is None"),
        ('{"question": "q"}', "line 3: context is missing"),
        ('{"question": "q", "context": [1]}', "line 3: context is no text"),
        (b'\xff{"question": "q"}', "line 3: not JSON"),
    ],
)
def test_a_bad_line_is_named_and_those_before_it_are_answered(reader, line, says):
    good, out = '{"question": "where is a?", "context": "a b"}', io.StringIO()
    with pytest.raises(UserError, match=says):
        answer_lines(reader, [good, "", line, good], out, None, 1, {})
    assert len(out.getvalue().splitlines()) == 1


def test_hostile_lines_are_answered_in_their_place(tiny_model, capsys, monkeypatch):
    good = '{"id": 1, "question": "where is a?", "context": "a b"}'
    bad = [
        "[" * 100_000,
        '{"id": ' + "9" * 5000 + "}",
        '{"id": NaN, "question": "q", "context": "c"}',
        '{"id": 2, "question": ["q"], "context": "c"}',
        '{"id": 3, "id": 4, "question": "q", "context": "c"}',
        '{"id": 5, "question": "q", "context": {"a": 1}}',
    ]
    lines = [line for each in bad for line in (each, good)]
    for flags, status, answered in (([], 1, 12), (["--on-error", "stop"], 2, 0)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
        if status == 2:
            with pytest.raises(UserError, match="line 1: not JSON"):
                main(["--model", str(tiny_model), "--jsonl", *flags])
        else:
            assert main(["--model", str(tiny_model), "--jsonl", *flags]) == status
        said = capsys.readouterr()
        rows = [json.loads(line) for line in said.out.splitlines()]
        assert len(rows) == answered
        for n, row in enumerate(rows):
            assert ("error" in row) == (n % 2 == 0) and ("answer" in row) == (n % 2 == 1)
            assert n % 2 == 0 or row["id"] == 1
        if rows:
            assert [row.get("id") for row in rows[6::2]] == [2, None, 5]
            assert rows[6]["error"].startswith("line 7: question is")
            assert "6 of the lines could not be read" in said.err


def test_a_program_that_waits_for_each_answer_gets_it(reader):
    answered, line = threading.Event(), '{"question": "where is a?", "context": "a b"}'

    class Out(io.StringIO):
        def flush(self):
            answered.set()

    def lines():
        for _ in range(3):
            answered.clear()
            yield line
            assert answered.wait(60), "the line before was not answered"

    out = Out()
    assert answer_lines(reader, lines(), out, None, 1, {}) == 0
    assert len(out.getvalue().splitlines()) == 3


def test_lines_that_cannot_be_read_are_an_error_and_not_the_end():
    def lines():
        yield "a"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(as_they_come(lines()))
    assert [line for some in as_they_come(["a", b"b"]) for line in some] == ["a", b"b"]
    assert list(as_they_come([])) == [[]]


def test_whole_words_and_int8_reach_the_reader(tiny_model, monkeypatch, capsys):
    asked = {}

    class Spy:
        qa = {}

        def answer(self, *args, **options):
            asked.update(options)
            return [Answer("a", 1.0, 0, 1)] * 2

    monkeypatch.setattr(
        "bertqa.predict.Reader.load", lambda *args, **options: asked.update(options) or Spy()
    )
    assert (
        main(
            [
                "--model",
                str(tiny_model),
                "--question",
                "q",
                "--context",
                "a",
                "--whole-words",
                "--int8",
            ]
        )
        == 0
    )
    assert asked == {
        "int8": True,
        "whole_words": True,
        "allow_no_answer": False,
        "threshold": None,
        "max_answer_length": None,
    }


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ([], {}),
        (["--decoding", "hf"], {"mode": "hf"}),
        (["--decoding", "google"], {"mode": "google"}),
        (["--max-context"], {"max_context": True}),
    ],
)
def test_ways_of_decoding_reach_the_files(tmp_path, reader, letters, monkeypatch, flags, settings):
    """The files are those of SpanSettings with that mode, on windows so short that the modes differ."""
    monkeypatch.setattr("bertqa.predict.load_reader", lambda args: reader)
    asked = []
    monkeypatch.setattr(
        inference,
        "SpanDecoder",
        lambda *given: asked.append(given[1]) or SpanDecoder(*given),
    )
    ask = ["--data", str(letters), "--out", str(tmp_path), "--limit", "20", "--n-best", "20"]
    assert main([*ask, *flags]) == 0
    assert set(asked) == {SpanSettings(**settings)}
    examples = read_examples(letters, 20).examples
    found = prediction_files(*reader.spans(examples, **settings), examples, None)
    for name, content in found.items():
        written = json.loads((tmp_path / name).read_text())
        assert written == json.loads(json.dumps(content)), name


def test_int8_says_what_it_costs(tmp_path, capsys, monkeypatch):
    """Its answers are held against those of the model as it is, and a bad model is told from a good one."""
    ask = ["--data", str(ROOT / "bertqa/data/sample/dev.json"), "--limit", "20", "--int8"]
    assert main([*ask, "--device", "cpu", "--out", str(tmp_path / "exact")]) == 0
    said = re.search(
        r"int8: of the first 20 questions (.*)% have the answer that auto precision gives; F1 (.*) instead of "
        r"(.*)\n",
        capsys.readouterr().err,
    )
    assert (
        float(said[1]) >= 80 and abs(float(said[2]) - float(said[3])) < 10 and float(said[3]) > 30
    )
    monkeypatch.setattr(
        prepack, "int8", lambda model, ranges: type(model)(model.config)
    )  # weights drawn at random
    assert main([*ask, "--threshold", "none", "--out", str(tmp_path / "drawn")]) == 0
    assert float(re.search(r"questions (.*)% have", capsys.readouterr().err)[1]) < 50


def test_int8_logits_are_near():
    model = folder.load(ROOT / "weights" / "minilm-squad2")
    ids = torch.randint(1000, 20000, (120,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, near = (
            torch.stack(list(one(ids, lengths=[50, 70]))) for one in (model, prepack.int8(model))
        )
    assert 0 < (exact - near).abs().max() < 0.1 * (exact.max() - exact.min())
