"""What every verb's command line says of flags that it does not know, of closed streams, and of failures."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from bertqa import doctor, embed, predict, report, score, train
from bertqa.data.examples import read_examples
from bertqa.data.labelled_texts import read_texts
from bertqa.errors import UserError
from bertqa.flags import OTHER_NAMES, run_verb
from bertqa.settings import parts_of
from bertqa.training.command_line import parse, parser_of

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("main", "argv", "says"),
    [
        (train.main, ["--learning_rate", "3e-5"], "--learning_rate is --lr here"),
        (train.main, ["--num-train-epochs=3"], "--num-train-epochs is --epochs here"),
        (train.main, ["--max_seq_length", "384"], "--max_seq_length is --max-length here"),
        (train.main, ["--per_device_train_batch_size", "8"], "is --batch-size here, which counts"),
        (train.main, ["--version_2_with_negative"], "is not needed: the data tell"),
        (train.main, ["--warmpu", "3"], "there is no --warmpu; did you mean --warmup?"),
        (train.main, ["--batch_size", "3"], "did you mean --batch-size?"),
        (train.main, ["--doc_stride", "128"], "error: --doc-stride means the step between windows"),
        (train.main, ["--lerning_rate", "1"], "no --lerning_rate; --learning-rate is --lr here"),
        (train.main, ["--model_name_or_path", "x"], "is --weights here ("),
        (train.main, ["--n_best_size", "20"], "is not needed: that is --n-best of predict"),
        (predict.main, ["--n_best_size", "20"], "is --n-best here"),
        (train.main, ["--predict_file", "x"], "is --dev here"),
        (predict.main, ["--predict_file", "x"], "is --data here"),
        (train.main, ["--overwrite_output_dir"], "is not needed: --resume goes on with a run"),
        (train.main, ["data.json"], "'data.json' is not expected here"),
        (train.main, ["--zzz", "--qqq", "1"], "there is no --zzz; there is no --qqq"),
        (predict.main, ["--modle", "x"], "did you mean --model?"),
        (predict.main, ["--learning_rate", "1"], "there is no --learning_rate ("),
        (predict.main, ["--lerning-rate", "1"], "there is no --lerning-rate ("),
        (train.main, ["--lerning-rate", "1"], "no --lerning-rate; --learning-rate is --lr here"),
        (doctor.main, ["data.json", "--fxi", "x"], "did you mean --fix?"),
        (score.main, ["a", "b", "--out_file", "x"], "did you mean --out-file?"),
        (report.main, ["run", "--ouput", "x"], "did you mean --out?"),
    ],
)
def test_unknown_flags_are_explained_in_one_line(main, argv, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and says in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_every_flag_that_is_named_exists():
    """Somewhere: in training, predict or convert."""
    known = {*parser_of(parts_of("qa"))._option_string_actions, "--to-hf"}
    known |= {"--threshold", "--model", "--data", "--limit", "--n-best"}
    for name, ours in OTHER_NAMES.items():
        for word in ours.replace(",", " ").replace("'s", "").split():
            assert not word.startswith("--") or word in known, f"{name}: {word}"


@pytest.mark.parametrize("task", ["qa", "classify"])
def test_the_records_that_help_shows_are_read(tmp_path, task):
    """As they are shown: a record of JSONL, here in two lines, and a CSV."""
    shown = parser_of(parts_of(task)).format_help().split("or the same as CSV:\n")[1]
    json_record, table = shown.split("\n\n")
    (tmp_path / "one.jsonl").write_text(" ".join(json_record.split("\n")) + "\n")
    (tmp_path / "one.csv").write_text(textwrap.dedent(table))
    if task == "qa":
        both = [read_examples(str(path)).examples for path in sorted(tmp_path.iterdir())]
        assert [example.answer_texts for (example,) in both] == [("Agnes Holm",)] * 2
    else:
        for path in sorted(tmp_path.iterdir()):
            assert read_texts(path, "text", label_column="label").labels == ["good"]


def failing(error: Exception):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "error: the memory is full"),
        (RecursionError("maximum"), "error: something in the input is nested too deeply"),
        (RuntimeError("[enforce fail] . unexpected pos 704 vs 598"), "the disk is full?"),
        (OSError(28, "No space left on device", "last/state.pt"), "No space left on device (last/"),
    ],
)
def test_failures_are_one_line(error, says, capsys):
    assert run_verb(failing(error)) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_our_own_mistakes_stay_tracebacks():
    with pytest.raises(RuntimeError, match="shapes"):
        run_verb(failing(RuntimeError("shapes differ")))


def test_a_verb_ends_without_a_search_for_garbage():
    """Among torch's objects it takes half a second, in which an interrupted verb does not seem to react."""
    code = (
        "from bertqa.flags import run_verb\n"
        "class Noisy:\n"
        "    def __del__(self):\n"
        "        print('found')\n"
        "def main(argv):\n"
        "    noisy = Noisy()\n"
        "    noisy.itself = noisy\n"
        "    print('ends')\n"
        "run_verb(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "ends\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_closed_streams(closed):
    """`--jsonl <&-`, and the like, from cron jobs and services: an empty input, and no traceback."""
    code = (
        "import sys; from bertqa.flags import run_verb; "
        "run_verb(lambda argv: print(repr(sys.stdin.read()), sys.stdout.isatty(), file=sys.stderr))"
    )
    done = subprocess.run(
        ["bash", "-c", f"exec {sys.executable} -c '{code}' {closed}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0 and done.stderr == ("" if closed == "2>&-" else "'' False\n")


READER = ROOT / "weights" / "minilm-squad2"


@pytest.mark.skipif(not (READER / "model.safetensors").exists(), reason="no bundled reader")
def test_verbs_name_a_model_alike(tmp_path, capsys):
    """By --model or --weights, and a run folder stands for its best model."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"settings": {}}')
    (run / "best").symlink_to(READER)
    asked = ["--question", "Who?", "--context", "Ada came.", "--device", "cpu"]
    sample = str(ROOT / "bertqa" / "data" / "sample" / "dev.json")
    for flag in ("--model", "--weights"):
        assert predict.main([*asked, flag, str(run)]) == 0
        assert embed.main(["--text", "Ada", flag, str(run)]) == 0
        assert doctor.main([sample, flag, str(run)]) == 0
        assert f"tokens of {run / 'best'}" in capsys.readouterr().out


def test_training_takes_it_by_both_names():
    for flag in ("--model", "--weights"):
        assert parse([flag, "some/model"]).settings.files.weights == "some/model"


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("cuda:x", "use auto, cpu, mps, cuda or cuda:N"),
        ("gpu", "finds only"),
        ("cpu:1", "use auto"),
        pytest.param(
            "cuda:1",
            "device is 'cuda:1', but torch",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_devices_that_are_none(device, says):
    with pytest.raises(UserError, match=says):
        predict.main(["--question", "Who?", "--context", "Ada.", "--device", device])
