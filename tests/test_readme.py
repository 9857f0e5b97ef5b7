"""README is true: its commands run in the order of the page, its Python blocks run, its flags and files exist.

Every line of a bash block, and every `python ...` in running text and tables, is run as it stands on the page (by bash, or
where it is nothing but `python -m` and words, by a process that need not import torch), in a folder that looks like a fresh clone. What stands in for the rest of the world is listed once, under "Stand-ins".

Not run: the installation by quickstart.py and check.py (the environment that they make is there already, so they go on from
there: quickstart.py trains and answers, check.py lints everything and runs a single test); `hf upload`, which is not ours;
and the commands of NOT_RUN.
"""

import gzip
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from processes import python
from servers import ROOT, Files, Hub, address, free_port, hub_client, serving, stand_in
from tiny_checkpoints import write_checkpoint

README = (ROOT / "README.md").read_text(encoding="utf-8")
HACKING = (ROOT / "tests" / "HACKING.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README + HACKING, re.DOTALL)
READER = ROOT / "weights" / "minilm-squad2"
SAMPLE = ROOT / "bertqa" / "data" / "sample"
needs_reader = pytest.mark.skipif(
    not (READER / "model.safetensors").exists(),
    reason="the bundled reader weights/minilm-squad2 is missing",
)

# Stand-ins ------------------------------------------------------------------------------------------------------------

HUB = {
    "google-bert/bert-base-uncased": {"head": None},
    "google-bert/bert-large-uncased-whole-word-masking-finetuned-squad": {},
    "google-bert/bert-base-multilingual-cased": {"head": None},
    "distilbert/distilbert-base-cased-distilled-squad": {"model_type": "distilbert"},
    "distilbert/distilbert-base-cased": {"model_type": "distilbert", "head": None},
    "sentence-transformers/all-MiniLM-L6-v2": {"head": None},
}
"""The Hub is a server on this machine, with random checkpoints (hidden 32) under the names of the real ones."""

SHORT = "--max-steps 1 --limit-train 8 --limit-dev 4 --freeze encoder"
"""Added to every training but a resumed one, by the python of the environment. Frozen, for Adam's moments of the bundled
reader would be most of the time."""

SHORT_IN_PYTHON = f"""
import functools, bertqa, bertqa.train
short = dict(max_steps=1, limit_train=8, limit_dev=4, freeze="encoder")
bertqa.fine_tune = functools.partial(bertqa.fine_tune, **short)
train = bertqa.train.main
bertqa.train.main = lambda argv: train([*argv, *{SHORT.split()!r}])
"""
"""Run before every Python block, for the same reason."""

REWRITTEN = {
    "--nnodes 2 --nproc-per-node 8": "--nnodes 2 --nproc-per-node 1",  # and the command is started twice, here
    "--nproc-per-node 8": "--nproc-per-node 2",
    "HOST:29500": "127.0.0.1:FREE_PORT",
}
"""Eight processes are two; sixteen on two machines are two on one."""

TYPED = "Who kept the lamp?\nHow long did Agnes Holm keep the lamp?\n"
"""What comes on standard input, in place of a person at a terminal."""

NOT_RUN = {
    "python tools/bench.py": "measures for an hour; tests/test_bench.py runs it small",
    "python tools/bench.py --data squad2-train-8k.json.gz --device cuda --only training --windows 64": "needs a GPU",
    "python tools/train_reader.py --out runs/reader": "trains for hours; tests/test_train_reader.py runs it small",
}


def squad(name: str) -> dict:
    """The first paragraph of the bundled sample's file, as SQuAD 2.0."""
    article = json.loads((SAMPLE / name).read_text(encoding="utf-8"))["data"][0]
    return {"version": "v2.0", "data": [{**article, "paragraphs": article["paragraphs"][:1]}]}


def records(data: dict) -> bytes:
    """Its questions as flat records, one a line."""
    rows = [
        {
            "id": asked["id"],
            "question": asked["question"],
            "context": paragraph["context"],
            "answers": {
                "text": [answer["text"] for answer in asked["answers"]],
                "answer_start": [answer["answer_start"] for answer in asked["answers"]],
            },
        }
        for article in data["data"]
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def answerable(data: dict) -> dict:
    """The questions that have an answer, as SQuAD 1.1."""
    (article,) = data["data"]
    (paragraph,) = article["paragraphs"]
    asked = [
        {key: question[key] for key in ("id", "question", "answers")}
        for question in paragraph["qas"]
        if question["answers"]
    ]
    return {
        "version": "1.1",
        "data": [{**article, "paragraphs": [{**paragraph, "qas": asked}]}],
    }


TRAIN, DEV = squad("train.json"), squad("dev.json")
IDS = {json.loads(row)["id"] for row in records(DEV).splitlines()}
DATA = {
    "questions.jsonl": records(DEV),
    "more.jsonl": records(TRAIN),
    "report.txt": b"Agnes Holm kept the lamp for thirty years. An electric one replaced it in 1931.\n",
    "reviews.csv": b"".join((SAMPLE / "reviews.csv").read_bytes().splitlines(keepends=True)[:25]),
    "dev-v1.1.json.gz": gzip.compress(json.dumps(DEV).encode()),
    "dev-v2.0.json.gz": gzip.compress(json.dumps(DEV).encode()),
    "squad2-dev-2k.json.gz": gzip.compress(json.dumps(DEV).encode()),
    "squad2-train-8k.json.gz": gzip.compress(json.dumps(TRAIN).encode()),
    "train-v1.1.json.gz": gzip.compress(json.dumps(TRAIN).encode()),
}
"""The files that the page takes for granted, each with a few real questions, a text, or reviews."""

OFFICIAL = {
    "squad1-train": json.dumps(answerable(TRAIN)).encode(),
    "squad1-dev": json.dumps(answerable(DEV)).encode(),
    "squad2-train": json.dumps(TRAIN).encode(),
    "squad2-dev": json.dumps(DEV).encode(),
}
"""What squad1 and squad2 fetch, from a server on this machine; download.py expects the hashes of these instead of SQuAD's."""

ENVIRONMENT = {
    "python": f"""case " $* " in *" --resume "*) ;; *" bertqa.train "*) set -- "$@" {SHORT} ;; esac
exec "{sys.executable}" "$@" """,
    "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
}
"""The commands of the virtual environment .venv, which looks as if quickstart.py and check.py had made it."""


@dataclass
class Clone:
    """A folder that looks like a fresh clone in an activated environment, where the page's commands are run."""

    folder: Path
    environment: dict[str, str]
    done: list[tuple[int, str, str]]
    """Exit status, standard output and standard error of each command that has run."""

    def result(self, number: int) -> tuple[int, str, str]:
        """Of the command of that number; those before it on the page are run first."""
        while len(self.done) <= number:
            self.done.append(self.run(COMMANDS[len(self.done)].text))
        return self.done[number]

    def run(self, text: str) -> tuple[int, str, str]:
        for ours, small in REWRITTEN.items():
            text = text.replace(ours, small)
        text = text.replace("FREE_PORT", str(free_port()))
        said = [self.folder / ".venv" / name for name in ("typed", "out", "err")]
        said[0].write_text(TYPED)
        words = shlex.split(text.replace("\\\n", " "), comments=True)
        if words[:2] == ["python", "-m"] and not set(text) & set("|&;<>$*`"):
            # As bash would have the environment's python do it, but for the seconds of importing torch.
            short = [] if "bertqa.train" not in words or "--resume" in words else SHORT.split()
            process = python(
                words[1:] + short, self.folder, self.environment, said[0].parent, said[0]
            )
            process.join(300)
            status = process.exitcode
            if status is None:
                os.killpg(process.pid, signal.SIGKILL)
                status = 124
            return status, *(path.read_text() for path in said[1:])
        with ExitStack() as stack:
            files = [
                stack.enter_context(open(path, mode))
                for path, mode in zip(said, ("r", "w", "w"), strict=True)
            ]
            processes = [
                subprocess.Popen(
                    ["bash", "-c", text],
                    cwd=self.folder,
                    env=self.environment,
                    stdin=files[0],
                    stdout=files[1],
                    stderr=files[2],
                    start_new_session=True,
                )
                for _ in range(2 if "--nnodes 2" in text else 1)
            ]
            try:
                statuses = [process.wait(300) for process in processes]
            except subprocess.TimeoutExpired:
                statuses = [124]  # as of the command timeout
            finally:
                for process in processes:
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
        return next(filter(None, statuses), 0), *(path.read_text() for path in said[1:])


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    (folder / "bertqa").symlink_to(ROOT / "bertqa")
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tests").mkdir()
    (folder / "tests" / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    (folder / "weights").mkdir()
    (folder / "weights" / "minilm-squad2").symlink_to(READER)
    for name, content in DATA.items():
        (folder / name).write_bytes(content)

    spec = importlib.util.spec_from_file_location("quickstart", folder / "tools" / "quickstart.py")
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    commands, site = folder / ".venv" / "bin", folder / ".venv" / "site"
    commands.mkdir(parents=True)
    for name, script in ENVIRONMENT.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    for stamp in ("installed", "installed-test"):
        (folder / ".venv" / stamp).write_text(quickstart.requirements())
    small = {name: stand_in(name, content) for name, content in OFFICIAL.items()}
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        f"from bertqa.data.download import FILES, Official  # noqa: F401\n\nFILES.update({small!r})\n"
    )

    repos = {}
    for repo, options in HUB.items():
        checkpoint = write_checkpoint(tmp_path_factory.mktemp("hub") / "tiny", **options)
        repos[repo] = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    files = {f"/{small[name].name}": content for name, content in OFFICIAL.items()}
    with (
        serving(Hub, repos=repos, log=[]) as hub,
        serving(Files, files=files, log=[], cuts=[], codes=[], ranges=True) as mirror,
    ):
        environment = hub_client(
            hub,
            folder / ".venv" / "hub",
            BERTQA_SQUAD_URL=address(mirror),
            BERTQA_CACHE=str(folder / ".venv" / "squad"),
            PATH=f"{commands}{os.pathsep}{os.environ['PATH']}",
            PYTHONPATH=f"{site}{os.pathsep}{ROOT}",
            PYTHON_EXEC=str(commands / "python"),
            PIP_NO_INDEX="1",
        )
        yield Clone(folder, environment, [])
    shutil.rmtree(folder)  # each training of the bundled reader leaves 90 MB


# The page -------------------------------------------------------------------------------------------------------------


@dataclass
class Command:
    """A command of the page, as it stands there."""

    text: str
    section: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def verb(self) -> str:
        """The verb, or the tool, that it runs: train, quickstart."""
        return re.search(r"(?:-m bertqa\.|tools/)(\w+)", self.text)[1]

    def option(self, flag: str) -> str | None:
        return self.words[self.words.index(flag) + 1] if flag in self.words else None


def commands_of(page: str) -> list[Command]:
    """Each command of the bash blocks, and each `python ...` that stands elsewhere, in order."""
    pattern = r"^## (?P<section>[^\n]+)$|^```(?P<language>\w+)\n(?P<block>.*?)^```$|`(?P<span>python [^`]+)`"
    section, found = "", []
    for match in re.finditer(pattern, page, re.MULTILINE | re.DOTALL):
        section = match["section"] or section
        texts = (
            re.findall(r"(?:.*\\\n)*.+", match["block"])
            if match["language"] == "bash"
            else [match["span"]]
        )
        found += [
            Command(text, section)
            for text in texts
            if text and text not in NOT_RUN and not text.startswith("#")
        ]
    return found


COMMANDS = commands_of(README)


# What each verb is there for ------------------------------------------------------------------------------------------


def last_run(clone: Path) -> Path:
    return max((clone / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def check_train(command: Command, clone: Path, out: str, err: str) -> None:
    if "--help" in command.words:
        assert out.startswith("usage: python -m bertqa.train") and not err
        return
    run = clone / (command.option("--out") or command.option("--resume") or last_run(clone))
    assert f"kept in {run.relative_to(clone)}/best" in err
    assert {"config.json", "metrics.jsonl", "summary.json", "report.html", "best", "last"} <= {
        p.name for p in run.iterdir()
    }
    assert json.loads((run / "summary.json").read_text())["steps"] == 1


def check_predict(command: Command, clone: Path, out: str, err: str) -> None:
    if "--data" in command.words:
        where = clone / command.option("--out")
        for name in ("predictions.json", "na_prob.json", "null_odds.json"):
            assert json.loads((where / name).read_text()).keys() == IDS
    else:
        assert [line.split("   ")[0] for line in out.splitlines()] == (
            ["Agnes Holm"] if "--question" in command.words else ["Agnes Holm", "thirty years"]
        )


def check_score(command: Command, clone: Path, out: str, err: str) -> None:
    found = json.loads(out)
    assert found["total"] == len(IDS) and 0 <= found["exact"] <= found["f1"] <= 100
    assert ("best_f1_thresh" in found) == ("--na-prob-file" in command.words)


def check_doctor(command: Command, clone: Path, out: str, err: str) -> None:
    shown = int(command.option("--show") or 0)
    report = re.search(
        rf"^questions +{len(IDS)} .*^ceiling +100.000 ", out, re.MULTILINE | re.DOTALL
    )
    assert len(re.findall("^question  ", out, re.MULTILINE)) == shown if shown else report


def check_embed(command: Command, clone: Path, out: str, err: str) -> None:
    vectors = np.load(clone / command.option("--out"))
    assert vectors.shape == (1, 384) and np.isfinite(vectors).all()


def check_convert(command: Command, clone: Path, out: str, err: str) -> None:
    source, made = command.words[3:5]
    written = json.loads((clone / made / "config.json").read_text())
    assert (clone / made / "model.safetensors").exists()
    if "--to-hf" in command.words:
        assert written["architectures"] == ["BertForQuestionAnswering"]
    else:
        assert written["provenance"]["source"] == source and bool(written["head"]) == (
            "head" not in HUB[source]
        )


def check_report(command: Command, clone: Path, out: str, err: str) -> None:
    assert out.strip() == f"{command.words[3]}/report.html"


def check_quickstart(command: Command, clone: Path, out: str, err: str) -> None:
    assert re.search(r"^Answer:   Agnes Holm", out, re.MULTILINE)
    page = Path(out.split()[-1])
    assert page == last_run(clone) / "report.html" and page.exists()


def check_check(command: Command, clone: Path, out: str, err: str) -> None:
    assert "1 passed" in out


# The tests ------------------------------------------------------------------------------------------------------------


CHECKS = {
    "train": check_train,
    "predict": check_predict,
    "score": check_score,
    "doctor": check_doctor,
    "embed": check_embed,
    "convert": check_convert,
    "report": check_report,
    "quickstart": check_quickstart,
    "check": check_check,
}


@needs_reader
@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    "number",
    range(len(COMMANDS)),
    ids=[f"{command.section}, {command.verb}" for command in COMMANDS],
)
def test_commands_run(clone, number):
    """Its exit status is 0, and what it is there for is there."""
    command, (status, out, err) = COMMANDS[number], clone.result(number)
    assert status == 0, f"{command.text}\n{out}\n{err}"
    CHECKS[command.verb](command, clone.folder, out, err)


def test_no_command_is_overlooked():
    """The count of lines that start a command, by a rule of its own."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    starts = [
        line
        for block in blocks
        for line in block.splitlines()
        if line.startswith(("python ", "torchrun "))
    ]
    assert len(starts) >= 20 and all(
        any(start in command.text for command in COMMANDS) for start in starts
    )


def test_an_environment_in_use_is_brought_up_to_date_not_made_again(tmp_path, monkeypatch):
    """The other command's extra is installed beside a training that runs in it; one that was cut off is made again."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import quickstart

    done = []
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    monkeypatch.setattr(quickstart, "requirements", lambda: "key")
    monkeypatch.setattr(quickstart.venv, "create", lambda home, with_pip: done.append("made"))
    monkeypatch.setattr(quickstart, "run", lambda *command: done.append(command[-1]))
    python = tmp_path / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.touch()
    for extra in ("test", "", ""):
        assert quickstart.environment(extra) == python
    assert done == ["made", f"{tmp_path}[test]", str(tmp_path)]


def test_ci_runs_check():
    assert "tools/check.py" in (ROOT / ".ci" / "run").read_text()


SHOWN = re.findall(r"^```console\n\$ ([^\n]*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@needs_reader
@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=range(len(SHOWN)))
def test_sample_output_is_what_is_printed(tmp_path, command, shown):
    """Each line that is shown is among those printed; numbers may be others."""
    process = python(shlex.split(command)[1:], ROOT, dict(os.environ), tmp_path)
    process.join(300)
    printed = (tmp_path / "out").read_text().splitlines()
    numberless = [re.sub(r"[\d.,]+", "N", line).split() for line in printed]
    for line in shown.splitlines():
        assert re.sub(r"[\d.,]+", "N", line).split() in numberless


def test_the_core_is_as_long_as_the_readme_says():
    rows = dict(re.findall(r"^\| ([\w/]+\.py) \| (\d+) \|", README, re.MULTILINE))
    total = int(re.search(r"^\| together \| ([\d,]+) \|", README, re.MULTILINE)[1].replace(",", ""))
    lines = {name: len((ROOT / "bertqa" / name).read_text().splitlines()) for name in rows}
    assert len(rows) >= 10 and sum(map(int, rows.values())) == total
    assert sum(lines.values()) == pytest.approx(total, rel=0.1) and total < 3500
    far = {
        name: count for name, count in lines.items() if abs(count - int(rows[name])) > 0.4 * count
    }
    assert not far, "mend the table in README"


def test_the_readme_is_short_and_its_picture_small():
    assert len(README.splitlines()) < 500
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures and all((ROOT / name).stat().st_size < 300_000 for name in pictures)


@needs_reader
@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(clone, block):
    said = clone.folder / ".venv"
    process = python(["-c", SHORT_IN_PYTHON + block], clone.folder, clone.environment, said)
    process.join(300)
    assert process.exitcode == 0, (said / "err").read_text()


def test_each_of_the_four_programs_takes_ten_lines():
    section = README.split("## The jobs of four programs", 1)[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 4
    assert all(len(block.splitlines()) <= 10 for block in blocks)


def test_every_flag_in_the_readme_exists(tmp_path):
    """Each `python -m bertqa.VERB --flag` and tools command uses flags that its --help knows."""
    commands = re.findall(r"(?:-m bertqa\.(\w+)|python (tools/\w+\.py))((?:\\\n|[^\n`])*)", README)
    helps: dict[str, str] = {}
    for verb, script, rest in commands:
        flags = re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*)", rest)
        task = ["--task", "classify"] if "--task classify" in rest else []
        name = " ".join([verb or script, *task])
        if name not in helps:
            argv = ["-m", f"bertqa.{verb}"] if verb else [script]
            if script in ("tools/quickstart.py", "tools/check.py"):
                helps[name] = ""
            else:
                process = python([*argv, *task, "--help"], ROOT, dict(os.environ), tmp_path)
                process.join(100)
                assert process.exitcode == 0, f"{name}: {(tmp_path / 'err').read_text()}"
                helps[name] = (tmp_path / "out").read_text()
        for flag in flags:
            assert flag in helps[name], (
                f"README uses {flag} of {name}, which its --help does not list"
            )


def test_files_named_in_the_readme_exist():
    named = set(
        re.findall(r"\b((?:bertqa|tests|tools|weights)/[\w./-]+\.(?:py|md|json|csv|txt))\b", README)
    )
    made = tuple(re.findall(r'\bsave\("([^"]+)"', README))  # by a block of the page
    assert [
        name for name in named if not (ROOT / name).exists() and not name.startswith(made)
    ] == []
