"""torch.export, a compiler that takes the whole graph, and ONNX: padded batches of any size give the numbers of eager mode."""

from importlib.util import find_spec

import pytest
import torch

from bertqa import BertConfig, UserError, convert, onnx_file
from bertqa.model import folder
from bertqa.model.attention import Layout, padded_attention
from bertqa.onnx_file import PaddedModel

SIZES = [(2, 7), (3, 13), (1, 5), (4, 40)]
needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="ONNX (extra `onnx`) is not installed",
)
HEADS = [folder.QA, folder.CLASSES, None]


def padded(rows: int, columns: int, left: bool = False):
    """A batch with padding at the end (or the beginning) of the first row, and a hole in the last."""
    draw = torch.Generator().manual_seed(rows * columns)
    ids = torch.randint(0, 36, (rows, columns), generator=draw)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    mask[-1, 2] = 0
    return (ids, mask.flip(1) if left else mask, (ids % 2).clone())


def tiny(kind: str, head: str | None) -> torch.nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=36,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=40,
        hidden_act="gelu_tanh",
        model_type=kind,
        type_vocab_size=2 if kind == "bert" else 0,
    )
    return folder.build(config, head, ["a", "b", "c"]).eval()


def distance(one, other) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_one_export_serves_every_size(kind, head):
    model = PaddedModel(tiny(kind, head), head)
    rows = torch.export.Dim("rows", min=1, max=2**31)
    columns = torch.export.Dim("columns", min=2, max=40)
    exported = torch.export.export(
        model, padded(2, 7), dynamic_shapes=[{0: rows, 1: columns}] * 3
    ).module()
    for size in SIZES:
        for left in (False, True):
            batch = padded(*size, left)
            assert distance(exported(*batch), model(*batch)) < 1e-5


@pytest.mark.parametrize("attention", [None, padded_attention])
def test_a_compiler_gets_the_whole_padded_call_in_one_graph(attention):
    """In eval mode and in training; a batch of one row has a graph of its own, as torch does it."""
    model = PaddedModel(tiny("bert", folder.QA), folder.QA)
    model.model.encoder.attention = attention
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for size in SIZES:
        batch = padded(*size)
        assert distance(compiled(*batch), model(*batch)) < 1e-5
    assert len(graphs) == 2
    compiled(*padded(2, 7))[0][:, 0].sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model(*padded(2, 7))[0][:, 0].sum().backward()
    wanted = [p.grad for p in model.parameters() if p.grad is not None]
    assert distance(gradients, wanted) < 1e-5
    torch._dynamo.reset()


def test_a_compiler_makes_one_graph_for_all_layouts():
    model = tiny("bert", folder.QA)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for lengths in ([7, 13, 1], [5, 5], [9, 8, 7, 6], [3, 12, 12]):
        ids = torch.arange(sum(lengths))
        got = compiled(ids, lengths=Layout.of(lengths, ids.device))
        assert distance(got, model(ids, lengths=lengths)) < 1e-5
    # torch 2.6 makes one for sizes that are equal by chance, and one more.
    assert len(graphs) == (3 if torch.__version__.startswith("2.6.") else 1)
    torch._dynamo.reset()


def test_maps_of_a_compiled_call_are_those_of_eager_mode():
    model = tiny("bert", None)
    ids, mask, segments = padded(3, 9)
    want = model(ids, mask, segments, output_attentions=True, output_hidden_states=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    got = compiled(ids, mask, segments, output_attentions=True, output_hidden_states=True)
    assert distance(got.attentions, want.attentions) < 1e-5
    assert distance(got.hidden_states, want.hidden_states) < 1e-5
    torch._dynamo.reset()


@pytest.mark.skipif(find_spec("onnx") is not None, reason="ONNX is installed")
def test_without_the_packages_the_way_to_them_is_said(tiny_model, tmp_path):
    with pytest.raises(
        UserError, match=r"needs onnx.* not installed: pip install 'bertqa\[onnx\]'"
    ):
        convert.main([str(tiny_model), str(tmp_path / "out"), "--to-onnx"])
    assert not (tmp_path / "out").exists()


@needs_onnx
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_onnxruntime_gives_the_same_numbers(kind, head, tiny_model, tmp_path, capsys):
    labels = ["a", "b", "c"] if head == folder.CLASSES else None
    model = tiny(kind, head)
    folder.save(tmp_path / "ours", model, tokenizer_from=tiny_model, labels=labels)
    (tmp_path / "ours" / "qa.json").write_text('{"max_length": 32}')
    assert convert.main([str(tmp_path / "ours"), str(tmp_path / "out"), "--to-onnx"]) == 0
    assert "checked in onnxruntime: differs from" in capsys.readouterr().out
    assert {"model.onnx", "vocab.txt", "tokenizer.json", "config.json", "qa.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    session = onnx_file.OnnxModel(tmp_path / "out" / "model.onnx", model.config)
    for size in SIZES:
        batch = padded(*size)
        want = PaddedModel(model, head)(*batch)
        assert distance(map(torch.from_numpy, session.run(*batch)), want) < 1e-5


@needs_onnx
def test_f1_on_request(tiny_model, letters, tmp_path, capsys):
    assert (
        convert.main([str(tiny_model), str(tmp_path / "out"), "--to-onnx", "--score", str(letters)])
        == 0
    )
    assert "exact " in capsys.readouterr().out
