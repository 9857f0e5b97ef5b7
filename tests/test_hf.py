"""Converted checkpoints compute what transformers computes, in every form that weights have had, and go back unchanged."""

import copy
import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import SIZES, write_vocab

from bertqa.hf.convert import convert
from bertqa.hf.export import export
from bertqa.model import folder
from bertqa.model.folder import CLASSES, QA

transformers = pytest.importorskip(
    "transformers", reason="the reference implementation comes with the extra `test`"
)

LENGTHS = (1, 2, 7, 512)
LABELS = ["no", "yes", "maybe"]
HF_CLASSES = {
    ("bert", QA): "BertForQuestionAnswering",
    ("bert", CLASSES): "BertForSequenceClassification",
    ("bert", None): "BertModel",
    ("distilbert", QA): "DistilBertForQuestionAnswering",
    ("distilbert", CLASSES): "DistilBertForSequenceClassification",
    ("distilbert", None): "DistilBertModel",
}
FORMS = (
    "safetensors",
    "sharded",
    "bin",
    "old bin",
    "sharded bin",
    "gamma and beta",
    "no prefix",
    "prefix",
    "with pooler",
    "pre-training head",
    "fp16",
    "bf16",
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Waiting for each other takes threads longer than these sizes take one; seven times longer on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def hf_model(model_type: str, head: str | None, hidden_act: str = "gelu"):
    """A random tiny model of transformers, with no parameter left at 0 or 1. Shared: not to be changed."""
    sizes = {**SIZES, "hidden_act": hidden_act}
    if model_type == "bert":
        config = transformers.BertConfig(**sizes)
    else:
        names = {
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        }
        config = transformers.DistilBertConfig(
            **{names.get(name, name): value for name, value in sizes.items()}
        )
    if head == CLASSES:
        config.id2label, config.label2id = (
            dict(enumerate(LABELS)),
            {name: i for i, name in enumerate(LABELS)},
        )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, HF_CLASSES[model_type, head])(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + ("orm.weight" in name))
    return model.eval()


def rounded(model, form: str):
    """The model with its numbers as that form stores them."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(form)
    return copy.deepcopy(model).to(dtype) if dtype else model


def write_form(model, where, form: str) -> None:
    """Save a model of transformers in one of the forms that the Hub holds."""
    rounded(model, form).save_pretrained(
        where, max_shard_size="20KB" if form == "sharded" else "1GB"
    )
    write_vocab(where)
    if form in ("safetensors", "sharded", "fp16", "bf16"):
        return
    tensors = load_file(where / "model.safetensors")
    (where / "model.safetensors").unlink()
    stem, hidden = model.config.model_type + ".", model.config.hidden_size
    if form == "gamma and beta":
        tensors = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta")
            .replace("layer_norm.weight", "layer_norm.gamma")
            .replace("layer_norm.bias", "layer_norm.beta"): tensor
            for name, tensor in tensors.items()
        }
    if form == "no prefix":
        tensors = {name.removeprefix(stem): tensor for name, tensor in tensors.items()}
    if form == "prefix":
        head = ("qa_outputs", "classifier", "pre_classifier")
        tensors = {
            name if name.startswith((*head, stem)) else stem + name: t
            for name, t in tensors.items()
        }
    if (
        form == "with pooler"
        and "bert.embeddings.LayerNorm.weight" in tensors
        and "classifier.bias" not in tensors
    ):
        tensors |= {
            "bert.pooler.dense.weight": torch.randn(hidden, hidden),
            "bert.pooler.dense.bias": torch.zeros(hidden),
        }
    if form == "pre-training head":
        names = (
            ("cls.predictions.bias", "cls.seq_relationship.weight", "bert.embeddings.position_ids")
            if stem == "bert."
            else (
                "vocab_transform.weight",
                "vocab_layer_norm.bias",
                "vocab_projector.bias",
                "distilbert.embeddings.position_ids",
            )
        )
        tensors |= {name: torch.arange(5)[None] for name in names}
    if form == "bin":
        torch.save(tensors, where / "pytorch_model.bin")
    elif form == "old bin":  # of PyTorch before 1.6
        torch.save(tensors, where / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif form == "sharded bin":
        names = sorted(tensors)
        halves = {
            "pytorch_model-00001-of-00002.bin": names[::2],
            "pytorch_model-00002-of-00002.bin": names[1::2],
        }
        for file, part in halves.items():
            torch.save({name: tensors[name] for name in part}, where / file)
        index = {
            "metadata": {},
            "weight_map": {name: file for file, part in halves.items() for name in part},
        }
        (where / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            where / "model.safetensors",
        )


def inputs(model_type: str, length: int) -> dict:
    ids = torch.randint(0, 99, (1, length), generator=torch.Generator().manual_seed(length))
    segments = (torch.arange(length) > length // 2).long()[None]
    return {"input_ids": ids} | ({"token_type_ids": segments} if model_type == "bert" else {})


def outputs(out, head: str | None) -> list[torch.Tensor]:
    """What the reference and ours must agree on, besides hidden states: logits, or the pooled vector."""
    if head == QA:
        return (
            [out.start_logits, out.end_logits]
            if hasattr(out, "start_logits")
            else [out.start, out.end]
        )
    if head == CLASSES:
        return [out.logits if hasattr(out, "logits") else out]
    pooled = (
        getattr(out, "pooler_output", None)
        if hasattr(out, "pooler_output")
        else getattr(out, "pooled", None)
    )
    return [out.last_hidden_state] + ([] if pooled is None else [pooled])


def run(model, model_type: str, head: str | None, token_types: bool) -> list[torch.Tensor]:
    """Outputs and the hidden states of every layer, for sequences of 1, 2, 7 and 512 tokens."""
    found = []
    for length in LENGTHS:
        given = inputs(model_type, length)
        if not token_types:
            given.pop("token_type_ids", None)
        with torch.no_grad():
            if isinstance(model, transformers.PreTrainedModel):
                out = model(**given, output_hidden_states=True)
                hidden = out.hidden_states
            else:
                out = model(**given)
                hidden = (model if head is None else model.encoder)(
                    **given, output_hidden_states=True
                ).hidden_states
        assert len(hidden) == SIZES["num_hidden_layers"] + 1
        found += [*outputs(out, head), *hidden]
    return found


@functools.cache
def expected(
    model_type: str, head: str | None, hidden_act: str, token_types: bool
) -> list[torch.Tensor]:
    return run(hf_model(model_type, head, hidden_act), model_type, head, token_types)


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    assert [tensor.shape for tensor in one] == [tensor.shape for tensor in other]
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def distance(ours, model_type: str, head: str | None, hidden_act: str = "gelu") -> float:
    """The largest difference from the shared model of transformers, with token types and without."""
    return max(
        difference(
            run(ours, model_type, head, given), expected(model_type, head, hidden_act, given)
        )
        for given in (True, False)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head", [QA, CLASSES, None], ids=["qa", "classes", "bare"])
@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_equals_transformers(tmp_path, model_type, head, form):
    reference = hf_model(model_type, head)
    write_form(reference, tmp_path / "theirs", form)
    report = convert(tmp_path / "theirs", tmp_path / "ours")
    assert (report.model_type, report.head) == (model_type, head)
    ours = folder.load(tmp_path / "ours")
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())
    if head == CLASSES:
        assert folder.read_config(tmp_path / "ours")["labels"] == LABELS
    if form not in ("fp16", "bf16"):
        assert distance(ours, model_type, head) < 1e-5
        return
    # As near to the exact numbers as the format allows, and equal to a reference that holds the rounded ones.
    assert 1e-5 < distance(ours, model_type, head) < (5e-3 if form == "fp16" else 5e-2)
    for given in (True, False):
        reference = run(rounded(hf_model(model_type, head), form).float(), model_type, head, given)
        assert difference(run(ours, model_type, head, given), reference) < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "gelu",
        "gelu_new",
        "gelu_fast",
        "gelu_pytorch_tanh",
        "gelu_python_tanh",
        "gelu_python",
        "relu",
    ],
)
@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_activations(tmp_path, model_type, name):
    write_form(hf_model(model_type, QA, name), tmp_path / "theirs", "safetensors")
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert distance(folder.load(tmp_path / "ours"), model_type, QA, name) < 1e-5
    export(tmp_path / "ours", tmp_path / "back")
    back = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "back").eval()
    assert distance(back, model_type, QA, name) < 1e-5


def test_packed_equals_transformers(tmp_path):
    """The four sequences in one packed batch, against the reference one by one."""
    reference = hf_model("bert", QA)
    write_form(reference, tmp_path / "theirs", "safetensors")
    convert(tmp_path / "theirs", tmp_path / "ours")
    batch = [inputs("bert", length) for length in LENGTHS]
    ids, segments = (
        torch.cat([given[name][0] for given in batch]) for name in ("input_ids", "token_type_ids")
    )
    with torch.no_grad():
        ours = folder.load(tmp_path / "ours")(ids, token_type_ids=segments, lengths=list(LENGTHS))
        theirs = torch.cat([reference(**given).start_logits[0] for given in batch])
    assert (ours.start - theirs).abs().max() < 1e-5


AUTO = {
    QA: "AutoModelForQuestionAnswering",
    CLASSES: "AutoModelForSequenceClassification",
    None: "AutoModel",
}


@pytest.mark.parametrize("form", ["safetensors", "fp16"])
@pytest.mark.parametrize("head", [QA, CLASSES, None], ids=["qa", "classes", "bare"])
@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_there_and_back(tmp_path, model_type, head, form):
    """import -> export -> import is bit-identical, transformers opens the export with its own classes and computes the
    same, and what transformers saves of it reloads here."""
    reference = rounded(hf_model(model_type, head), form)
    write_form(reference, tmp_path / "theirs", form)
    first = convert(tmp_path / "theirs", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "exported")
    second = convert(tmp_path / "exported", tmp_path / "again")
    assert first.sha256 == second.sha256
    for name in ("vocab.txt", "tokenizer.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    one, two = (folder.read_config(tmp_path / name) for name in ("ours", "again"))
    assert {k: one.get(k) for k in ("architecture", "head", "labels")} == {
        k: two.get(k) for k in ("architecture", "head", "labels")
    }
    back = (
        getattr(transformers, AUTO[head])
        .from_pretrained(tmp_path / "exported", attn_implementation="eager")
        .eval()
    )
    assert type(back) is type(reference) and back.dtype == reference.dtype
    assert head != CLASSES or back.config.id2label == dict(enumerate(LABELS))
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    back.save_pretrained(tmp_path / "saved by transformers")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "exported").save_pretrained(
        tmp_path / "saved by transformers"
    )
    convert(tmp_path / "saved by transformers", tmp_path / "last")
    back, last = (
        run(back.float(), model_type, head, True),
        run(folder.load(tmp_path / "last"), model_type, head, True),
    )
    assert difference(back, last) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": True, "tokenize_chinese_chars": False},
    ],
)
def test_exported_tokenizer(tmp_path, settings):
    """From vocab.txt and tokenizer_config.json alone, ours and transformers' tokenizers agree, before and after export."""
    from tokenizers import Tokenizer

    write_form(hf_model("bert", QA), tmp_path / "theirs", "safetensors")
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(tmp_path / "theirs", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "exported")
    text = "Cafe CAFÉ café ab中c 42! wôrd1 \u2028 [SEP] xyz"
    ours = Tokenizer.from_file(str(tmp_path / "ours" / "tokenizer.json")).encode(text).ids
    classic = (
        transformers.BertTokenizer(str(tmp_path / "theirs" / "vocab.txt"), **settings)
        if hasattr(transformers, "BertTokenizer")
        else None
    )
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert exported(text).input_ids == ours
    assert ours.count(1) < 8, "the text should not be all [UNK]"
    if classic is not None:
        assert classic(text).input_ids == ours


def test_real_checkpoint(shared, tmp_path):
    """all-MiniLM-L6-v2: last hidden state and pooled vector, converted and exported again."""
    source = shared / "weights" / "all-MiniLM-L6-v2"
    convert(source, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    given = tokenizer(
        ["Who wrote it?", "The bridge at Åmål was built in 1869, of stone."],
        padding=True,
        return_tensors="pt",
    )
    reference = transformers.AutoModel.from_pretrained(source).eval()
    exported = transformers.AutoModel.from_pretrained(tmp_path / "exported").eval()
    ours, keep = folder.load(tmp_path / "ours"), given["attention_mask"].bool()
    with torch.no_grad():
        theirs, again, mine = reference(**given), exported(**given), ours(**given)
    assert torch.equal(theirs.last_hidden_state, again.last_hidden_state)
    assert (theirs.last_hidden_state - mine.last_hidden_state)[keep].abs().max() < 1e-5
    assert (theirs.pooler_output - mine.pooled).abs().max() < 1e-5
