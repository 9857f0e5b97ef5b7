"""Describe a run in words: its remarks, its lead sentence and its table of facts."""

import math
import shlex
from pathlib import Path

from bertqa.reporting.run_folder import Run, has_numbers, is_number, moved_ends, numbers, object_at


def remarks(run: Run) -> list[str]:
    """Return what one must know to understand the numbers, a sentence each."""
    notes = moved_ends(run.config)
    end = run.last("end")
    if run.events and not end:
        notes.append(
            "The run has not ended: it is still being trained, or was killed. Curves go as far as it got."
        )
    elif end.get("finished") is False:
        step = counted(end.get("steps", 0))
        command = f"python -m bertqa.train --resume {shlex.quote(str(run.folder))}"
        notes.append(f"The run was stopped at step {step}, before its end; {command} goes on.")
    return notes + tuning_remarks(run)


def tuning_remarks(run: Run) -> list[str]:
    """Return a sentence about the questions that the no-answer threshold was tuned on, if it was tuned."""
    tuning = run.qa.get("tuning")
    if run.qa.get("null_threshold") is None or not isinstance(tuning, dict):
        return []
    tuned = tuning.get("tuned")
    rest = tuning.get("held_out")  # only in older runs, which could keep a part of dev for this
    if has_numbers(tuned, "questions") and has_numbers(rest, "questions", "exact", "f1"):
        return [
            f"The no-answer threshold was tuned on {tuned['questions']:,} of these questions. On the "
            f"{rest['questions']:,} held out it gives EM {rest['exact']:.2f}, F1 {rest['f1']:.2f}: "
            "these are the honest numbers."
        ]
    if tuned:
        return [
            "The no-answer threshold was tuned on these same questions, which flatters the scores a little."
        ]
    return []


def counted(value: object) -> str:
    """Return a number with thousands separators; anything else as it is."""
    return f"{value:,}" if is_number(value) else str(value)


def lead(run: Run) -> str:
    """Return the lead sentence: what was trained, on what, for how long."""
    started_from = data_name(run.setting("weights"))
    end = run.last("end") or run.last("train")
    steps = end.get("steps", end.get("step"))  # the end's count, or how far the last record got
    trained = f"trained on {data_name(run.setting('train'))}"
    if steps:
        trained += f" for {counted(steps)} steps"
    if is_number(end.get("seconds")):
        trained += f" in {duration(end['seconds'])}"
    return f"{model_in_words(run)}, started from {started_from}, {trained}, evaluated on {evaluated_on(run)}."


def model_in_words(run: Run) -> str:
    """Return "A BERT of 6 layers and 22.6 million parameters", or the part of it that is known."""
    kinds = {"bert": "A BERT", "distilbert": "A DistilBERT"}
    kind = kinds.get(str(run.shape.get("model_type")), "A model")
    parts = []
    if "num_hidden_layers" in run.shape:
        parts.append(f"{run.shape['num_hidden_layers']} layers")
    size = parameters(run.weights)
    if size:
        parts.append(f"{size / 1e6:,.1f} million parameters")
    return f"{kind} of {' and '.join(parts)}" if parts else kind


def data_name(setting: object) -> str:
    """Return the name of the file or folder in a setting; for best/ and last/ with that of their run."""
    path = Path(str(setting or "?"))
    return "/".join(path.parts[-2:]) if path.name in ("best", "last") else path.name


def evaluated_on(run: Run) -> str:
    """Return the name of the dev set, or what was held out of the training data where none was given."""
    if run.setting("dev"):
        return data_name(run.setting("dev"))
    if run.classifies:
        return "texts held out of it"
    if (run.folder / "dev.json").is_file():
        return "questions held out of it"
    return "?"


def duration(seconds: float) -> str:
    """Return seconds in words: 3725 -> "1 h 2 min", 95 -> "1 min 35 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{rest} s"


def facts(run: Run) -> dict[str, str]:
    """Return the table of facts, label -> value; what is not known is left out."""
    config = run.config
    versions = dict(run.part("versions"))
    versions.pop("platform", None)  # shown with the hardware
    command = config.get("command")
    words = command if isinstance(command, list) else []
    found = {
        "Model": model_fact(run),
        "Started from": source_fact(run),
        "Trained on": file_fact(run, "train"),
        "Evaluated on": file_fact(run, "dev") if run.setting("dev") else evaluated_on(run),
        "Windows": window_fact(run),
        "Recipe": recipe_fact(run),
        "Best weights": best_fact(run),
        **effort_facts(run.last("end")),
        "Hardware": hardware(run),
        "Software": ", ".join(f"{name} {value}" for name, value in versions.items()),
        "Commit": config.get("commit"),
        "Begun": config.get("started"),
        "Command": shlex.join(map(str, words)),
    }
    # str: config.json may have been edited, so its values may be of any type.
    return {label: str(value) for label, value in found.items() if value}


def model_fact(run: Run) -> str:
    shape = run.shape
    if not shape:
        return ""
    size = parameters(run.weights)
    counts = f", {size:,} parameters" if size else ""
    return (
        f"{shape.get('model_type')}, {shape.get('num_hidden_layers')} layers, hidden size "
        f"{shape.get('hidden_size')}, {shape.get('num_attention_heads')} heads{counts}"
    )


def source_fact(run: Run) -> str:
    provenance = object_at(run.model, "provenance")
    origin = [str(provenance[name]) for name in ("source", "license") if provenance.get(name)]
    text = str(run.setting("weights"))
    if origin:
        text += f" ({', '.join(origin)})"
    if run.setting("fresh_head"):
        text += ", with a fresh answer head"
    return text


def file_fact(run: Run, part: str) -> str:
    """Return a data file's name, how many of its questions were used, and the beginning of its hash."""
    text = str(run.setting(part))
    limit = run.setting(f"limit_{part}")
    if limit:
        text += f", first {counted(limit)} questions"
    mark = run.part("fingerprints").get(f"{part} file")  # the beginning of its sha256
    if mark:
        text += f" (sha256 {mark}…)"
    return text


def window_fact(run: Run) -> str:
    if run.classifies:
        return f"{run.setting('max_length')} tokens" if run.setting("max_length") else ""
    step = run.setting("step")
    overlap = run.setting("overlap")
    if step is not None:
        stride = f"step {step}"
    elif overlap is not None:
        stride = f"overlap {overlap}"
    else:
        stride = "overlap 128"  # the default
    return f"{run.setting('max_length')} tokens, {stride}"


def recipe_fact(run: Run) -> str:
    """Return the hyper-parameters, with the steps and epochs that really ran, where these are known."""
    last = run.last("train")
    length = f"{run.setting('epochs')} epochs planned"
    if is_number(last.get("step")):
        length = f"{counted(last['step'])} steps"
        if is_number(last.get("epoch")):
            length += f" ({last['epoch']:.4g} epochs)"
    return (
        f"{length}, batches of {run.setting('batch_size')} windows, learning rate "
        f"{run.setting('lr')} ({run.setting('schedule')}, warm-up {run.setting('warmup')}), "
        f"weight decay {run.setting('weight_decay')}, seed {run.setting('seed')}"
    )


def best_fact(run: Run) -> str:
    name = "macro_f1" if run.classifies else "f1"
    steps, scores = numbers(run.of("eval"), "step", name)
    if not scores:
        return ""
    best = max(scores)
    return f"step {steps[scores.index(best)]:,}, {name} {best:.2f}"


def effort_facts(end: dict) -> dict[str, str]:
    """Return the time, throughput and memory of training, from the journal's last record."""
    found = {}
    if is_number(end.get("seconds")):
        steps = counted(end.get("steps"))
        windows = counted(end.get("windows"))
        found["Training time"] = f"{duration(end['seconds'])} for {steps} steps, {windows} windows"
    if has_numbers(end, "windows_per_s", "tokens_per_s"):
        speed = f"{end['windows_per_s']:,.1f} windows/s"
        found["Throughput"] = f"{speed}, {end['tokens_per_s']:,.0f} useful tokens/s"
    if end.get("peak_memory_mb"):
        found["Peak memory"] = f"{counted(end['peak_memory_mb'])} MB"
    return found


def hardware(run: Run) -> str:
    """Return the machine as config.json describes it, then device and number format.

    These are the chosen ones if the run recorded them, else those of its settings, such as "auto".
    """
    known = run.part("hardware")
    chosen = {name: known.get(name, run.setting(name)) for name in ("device", "precision")}
    parts = []
    # All that is recorded, "cores" and "gpu" today.
    for name, value in known.items():
        if name not in chosen:
            parts.append(f"{name.replace('_', ' ')} {value}")
    parts.append(str(run.part("versions").get("platform", "")))
    processes = run.part("fingerprints").get("processes", 1)
    if is_number(processes) and processes > 1:
        parts.append(f"{processes} processes")
    parts += [f"{name} {value}" for name, value in chosen.items()]
    return ", ".join(filter(None, parts))


def parameters(folder: Path | None) -> int:
    """Return the number of parameters, from the header of model.safetensors; 0 if that cannot be read."""
    from safetensors import SafetensorError, safe_open

    if folder is None:
        return 0
    try:
        with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return 0
