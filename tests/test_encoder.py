"""The encoder: equal to transformers, packed or padded, whatever attention body; gradients; initialisation; hacking."""

from dataclasses import replace

import pytest
import torch

from bertqa import (
    BertConfig,
    BertEncoder,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    UserError,
)
from bertqa.model import attention, cpu_attention
from bertqa.model.attention import Layout
from bertqa.model.dropout import dropout
from bertqa.model.heads import SpanLogits, span_loss

TINY = BertConfig(
    vocab_size=99,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=40,
    attention_probs_dropout_prob=0.0,
    hidden_dropout_prob=0.0,
)
BODIES = [
    attention.reference_attention,
    attention.per_sequence_attention,
    attention.padded_attention,
]
LENGTHS = [7, 13, 1]


def packed(lengths=LENGTHS, seed=0):
    draw = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    return torch.randint(0, 99, (total,), generator=draw), torch.randint(
        0, 2, (total,), generator=draw
    )


def padded(ids, segments, lengths=LENGTHS):
    layout = Layout.of(lengths, torch.device("cpu"))
    return layout.pad(ids, 0), layout.mask().long(), layout.pad(segments, 0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertForQuestionAnswering(TINY).eval()


def test_layout_by_hand():
    layout = Layout.of([2, 3], torch.device("cpu"))
    assert layout.cu_seqlens.tolist() == [0, 2, 5]
    assert layout.positions.tolist() == [0, 1, 0, 1, 2]
    assert layout.sequence.tolist() == [0, 0, 1, 1, 1]
    assert layout.pad(torch.tensor([1, 2, 3, 4, 5]), 9).tolist() == [[1, 2, 9], [3, 4, 5]]
    assert layout.unpad(layout.pad(torch.tensor([1, 2, 3, 4, 5]), 9)).tolist() == [1, 2, 3, 4, 5]


def test_packed_equals_padded(model):
    ids, segments = packed()
    out = model(ids, token_type_ids=segments, lengths=LENGTHS)
    rows, mask, types = padded(ids, segments)
    padded_out = model(rows, mask, types)
    assert torch.allclose(padded_out.start[mask.bool()], out.start, atol=1e-6)
    assert (padded_out.end[~mask.bool()] == torch.finfo(torch.float32).min).all()


def test_padding_anywhere(model):
    """Padding on the left, or a hole, gives the numbers of the sequence without it."""
    ids, segments = packed([5])
    rows, mask = torch.zeros(1, 8, dtype=torch.long), torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0]])
    rows[mask.bool()] = ids
    plain = model(ids[None]).start[0]
    assert torch.equal(model(rows, mask).start[mask.bool()], plain)


@pytest.mark.parametrize("body", BODIES)
def test_bodies_agree_forward_and_backward(body, model):
    ids, segments = packed()

    def run(chosen):
        model.encoder.attention = chosen
        model.zero_grad()
        logits = model(ids, token_type_ids=segments, lengths=LENGTHS)
        (logits.start.square().sum() + logits.end.sum()).backward()
        return logits.start.detach(), [p.grad.clone() for p in model.parameters()]

    start, gradients = run(body)
    expected, expected_gradients = run(attention.reference_attention)
    assert torch.allclose(start, expected, atol=1e-6)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 12])  # head sizes 384 and 32
@pytest.mark.parametrize("body", BODIES[1:])
def test_bodies_at_real_width(body, heads):
    draw = torch.Generator().manual_seed(1)
    layout = Layout.of([50, 3], torch.device("cpu"))
    q, k, v = torch.randn(3, 53, heads, 384 // heads, generator=draw)
    want = attention.reference_attention(q, k, v, layout)
    assert torch.allclose(body(q, k, v, layout, 0.0), want, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_on_a_cpu(dtype):
    """Forward and gradient against the reference in float32; neighbours of equal length share a call."""
    draw = torch.Generator().manual_seed(1)
    layout = Layout.of([50, 3, 3], torch.device("cpu"))
    exact = torch.randn(56, 3, 12, 32, generator=draw).to(dtype).float().requires_grad_()
    rounded = exact.detach().to(dtype).requires_grad_()
    weight = torch.randn(56, 12, 32, generator=draw)
    want = attention.reference_attention(*exact.unbind(1), layout)
    got = attention.per_sequence_attention(*rounded.unbind(1), layout)
    (want * weight).sum().backward()
    (got.float() * weight).sum().backward()
    assert got.dtype == dtype
    assert torch.allclose(got.float(), want, atol=0.03) and torch.allclose(
        rounded.grad.float(), exact.grad, atol=0.06
    )


def test_attention_written_out_is_torchs_own():
    q, k, v = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(1))
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(cpu_attention.written_out(q, k, v, 0.0), fused, atol=1e-6)
    torch.manual_seed(0)
    dropped = cpu_attention.written_out(
        q, k, torch.ones_like(v), 0.5
    )  # a row's kept weights, twice: 1 only on average
    assert dropped.std() > 0.1 and abs(dropped.mean() - 1) < 0.2


def test_what_attends_fastest_on_a_cpu():
    """Dropout and 16 bits have bodies of their own there, and no other device has."""
    fused = torch.nn.functional.scaled_dot_product_attention
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        query = torch.zeros(1, 1, 1, 1, dtype=dtype)
        assert cpu_attention.fastest_call(query, 0.1) is cpu_attention.written_out
        without = fused if dtype == torch.float32 else cpu_attention._in_sixteen_bits
        assert cpu_attention.fastest_call(query, 0.0) is without
        for share in (0.0, 0.1):
            assert cpu_attention.fastest_call(query.to("meta"), share) is fused


@pytest.mark.parametrize(
    ("device", "dtype", "dropout_p", "has_lengths", "is_packed", "has_kernel", "body"),
    [
        ("cpu", torch.float32, 0.0, True, True, True, attention.per_sequence_attention),
        ("mps", torch.float16, 0.1, True, True, True, attention.per_sequence_attention),
        ("cpu", torch.bfloat16, 0.0, False, True, True, attention.padded_attention),
        ("cuda", torch.bfloat16, 0.0, True, True, True, attention.varlen_attention),
        ("cuda", torch.float16, 0.0, False, True, True, attention.varlen_attention),
        ("cuda", torch.float32, 0.0, True, True, True, attention.padded_attention),
        ("cuda", torch.bfloat16, 0.1, True, True, True, attention.padded_attention),
        ("cuda", torch.bfloat16, 0.0, True, False, True, attention.padded_attention),
        ("cuda", torch.bfloat16, 0.0, True, True, False, attention.padded_attention),
    ],
)
def test_the_attention_that_is_chosen(
    monkeypatch, device, dtype, dropout_p, has_lengths, is_packed, has_kernel, body
):
    monkeypatch.setattr(attention, "_has_varlen", lambda device: has_kernel)
    chosen = attention.choose_attention(
        torch.device(device), dtype, dropout_p, has_lengths, is_packed
    )
    assert chosen is body


def test_sixteen_bit_attention_has_the_gradient_of_its_formula():
    """The gradient written by hand, against differences in float64, where rounding hides nothing."""
    draw = torch.Generator().manual_seed(1)
    qkv = torch.randn(3, 2, 3, 5, 4, generator=draw, dtype=torch.float64)
    query, key, value = qkv.requires_grad_().unbind(0)
    exact = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(cpu_attention._in_sixteen_bits(query, key, value, 0.0), exact)
    by_hand = cpu_attention._in_sixteen_bits
    assert torch.autograd.gradcheck(lambda q, k, v: by_hand(q, k, v, 0.0), (query, key, value))


def test_attention_is_within_a_sequence(model):
    ids, _ = packed()
    before = model(ids, lengths=LENGTHS).start
    ids[8] = (ids[8] + 1) % 99
    after = model(ids, lengths=LENGTHS).start
    assert torch.equal(before[:7], after[:7]) and torch.equal(before[20:], after[20:])
    assert not torch.equal(before[7:20], after[7:20])


def test_attention_maps_and_hidden_states(model):
    ids, segments = packed()
    out = model.encoder(
        ids,
        token_type_ids=segments,
        lengths=LENGTHS,
        output_hidden_states=True,
        output_attentions=True,
    )
    assert len(out.hidden_states) == 4 and len(out.attentions) == 3
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    maps = out.attentions[0]  # (S, A, L, L)
    assert maps.shape == (3, 4, 13, 13)
    assert torch.allclose(maps[0, :, :7].sum(-1), torch.ones(4, 7)) and (maps[0, :, 7:] == 0).all()
    assert (maps[0, :, :, 7:] == 0).all()


def test_every_parameter_gets_a_gradient(model):
    ids, segments = packed()
    layout = Layout.of(LENGTHS, ids.device)
    model.train()
    span_loss(
        model(ids, token_type_ids=segments, lengths=layout),
        layout,
        torch.tensor([1, 0, 0]),
        torch.tensor([2, 5, 0]),
    ).backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ] == []


def gradients(model, seed=0):
    torch.manual_seed(seed)
    model.zero_grad()
    out = model(torch.randint(0, 99, (19,)), lengths=[12, 7])
    (out.start.sum() + out.end.square().sum()).backward()
    return out.start.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters()
    }


def test_recomputing_layers_changes_nothing_but_memory(monkeypatch):
    """Dropout included: the second forward pass draws what the first one drew."""
    model = BertForQuestionAnswering(
        replace(TINY, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    ).train()
    calls = []
    body = model.encoder.layers[0].behind_attention
    monkeypatch.setattr(
        model.encoder.layers[0], "behind_attention", lambda *x: calls.append(1) or body(*x)
    )
    start, kept = gradients(model)
    assert len(calls) == 1
    model.encoder.recompute = True
    again, recomputed = gradients(model)
    assert len(calls) == 3 and torch.equal(start, again)
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


@pytest.mark.slow
def test_fused_layers_are_compiled_once_and_equal_plain_ones():
    counters = pytest.importorskip("torch._dynamo.utils").counters
    model = BertForQuestionAnswering(replace(TINY, max_position_embeddings=80)).train()
    start, plain = gradients(model)
    model.encoder.fuse()
    counters.clear()
    again, fused = gradients(model)
    torch.testing.assert_close(start, again, atol=1e-5, rtol=1e-5)
    for name in plain:
        torch.testing.assert_close(plain[name], fused[name], atol=1e-5, rtol=1e-4)
    for length in (2, 5, 64):
        model(torch.randint(0, 99, (length,)), lengths=[length])
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    for layer in model.encoder.layers:
        layer.dropout = 0.5
    assert not torch.equal(gradients(model, 0)[0], gradients(model, 1)[0])
    assert (
        torch.equal(gradients(model, 0)[0], gradients(model, 0)[0]) and not counters["graph_break"]
    )


def test_classifier_uses_every_parameter():
    for kind in ("bert", "distilbert"):
        torch.manual_seed(0)
        config = TINY.replace(model_type=kind, type_vocab_size=0 if kind == "distilbert" else 2)
        classifier = BertForSequenceClassification(config, 3)
        ids, segments = packed()
        logits = classifier(
            ids, token_type_ids=None if kind == "distilbert" else segments, lengths=LENGTHS
        )
        assert logits.shape == (3, 3)
        logits.square().sum().backward()
        assert [name for name, p in classifier.named_parameters() if p.grad is None] == []
        rows, mask, types = padded(ids, segments)
        assert torch.allclose(
            classifier(rows, mask, None if kind == "distilbert" else types), logits, atol=1e-6
        )


def test_initialisation_is_berts():
    torch.manual_seed(0)
    encoder = BertEncoder(TINY.replace(hidden_size=128, num_attention_heads=8, pooler=True))
    for name, p in encoder.named_parameters():
        if "norm.weight" in name:
            assert (p == 1).all(), name
        elif name.endswith("bias"):
            assert (p == 0).all(), name
        else:
            assert abs(p.mean()) < 0.003 and 0.017 < p.std() < 0.023, name


def test_initialisation_follows_the_config():
    """With another deviation, in the encoder and in all heads; span readers have no pooler."""
    wide = TINY.replace(hidden_size=128, num_attention_heads=8, initializer_range=0.1)
    reader = BertForQuestionAnswering(wide.replace(pooler=True))
    assert not reader.config.pooler and "encoder.pooler.weight" not in reader.state_dict()
    distil = BertForSequenceClassification(wide.replace(model_type="distilbert"), 64)
    for model in (BertEncoder(wide.replace(pooler=True)), reader, distil):
        for name, p in model.named_parameters():
            if p.dim() == 2:
                assert 0.08 < p.std() < 0.12, name
            elif "norm.weight" not in name:
                assert (p == 0).all(), name


def test_every_norm_has_the_epsilon_of_the_config():
    encoder = BertEncoder(TINY.replace(layer_norm_eps=1e-3))
    norms = [part for part in encoder.modules() if isinstance(part, torch.nn.LayerNorm)]
    assert len(norms) == 1 + 2 * TINY.num_hidden_layers
    assert {norm.eps for norm in norms} == {1e-3}


def test_fuse_compiles_what_stands_behind_attention(model, monkeypatch):
    compiled = []

    def compile(function, dynamic):
        compiled.append((function.__self__, dynamic))
        return lambda *inputs: function(*inputs) + 1

    monkeypatch.setattr(torch, "compile", compile)
    ids, _ = packed()
    before = model(ids, lengths=LENGTHS).start
    layers = list(model.encoder.layers)
    model.encoder.fuse()
    assert compiled == [(layer, True) for layer in layers]
    assert not torch.allclose(model(ids, lengths=LENGTHS).start, before)


def test_swapping_attention_takes_one_function(model):
    def mean_attention(query, key, value, layout, dropout_p):
        return torch.cat(
            [v.mean(0, keepdim=True).expand_as(v) for v in value.split(layout.lengths)]
        )

    hacked = BertForQuestionAnswering(TINY, attention=mean_attention).eval()
    hacked.load_state_dict(model.state_dict())
    ids, _ = packed()
    assert not torch.allclose(hacked(ids, lengths=LENGTHS).start, model(ids, lengths=LENGTHS).start)


def test_span_loss_is_the_sum_over_windows_of_ordinary_cross_entropies():
    draw = torch.Generator().manual_seed(0)
    layout = Layout.of([4, 2], torch.device("cpu"))
    logits = SpanLogits(*torch.randn(2, 6, generator=draw))
    start, end = torch.tensor([1, 0]), torch.tensor([3, 1])
    want = 0.0
    for scores, labels in ((logits.start, start), (logits.end, end)):
        for window, label in zip(scores.split([4, 2]), labels, strict=True):
            want = want + torch.nn.functional.cross_entropy(window, label) / 2
    assert torch.allclose(span_loss(logits, layout, start, end), want)


def test_span_loss_counts_each_window_by_its_weight():
    draw = torch.Generator().manual_seed(0)
    logits = SpanLogits(*torch.randn(2, 6, generator=draw))
    layout = Layout.of([4, 2], torch.device("cpu"))
    start, end = torch.tensor([1, 0]), torch.tensor([3, 1])
    alone = []
    for s, part in enumerate((slice(0, 4), slice(4, 6))):
        one = SpanLogits(logits.start[part], logits.end[part])
        own = Layout.of([part.stop - part.start], torch.device("cpu"))
        alone.append(span_loss(one, own, start[s : s + 1], end[s : s + 1]))
    for weights in ([1.0, 1.0], [1.0, 0.0], [0.25, 2.0]):
        loss = span_loss(logits, layout, start, end, torch.tensor(weights))
        assert torch.allclose(loss, weights[0] * alone[0] + weights[1] * alone[1])


def test_dropout_rate_scale_and_gradient():
    torch.manual_seed(0)
    x = torch.ones(301, 333, requires_grad=True)
    y = dropout(x, 0.1, True)
    assert abs((y == 0).float().mean() - 0.1) < 0.003
    assert torch.allclose(y[y > 0], torch.tensor(1 / 0.9))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert dropout(x, 0.1, False) is x and dropout(x, 0.0, True) is x


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (dict(input_ids=torch.zeros(5, dtype=torch.long)), "needs lengths"),
        (dict(input_ids=torch.zeros(5, dtype=torch.long), lengths=[2, 2]), "a sum of 4"),
        (
            dict(input_ids=torch.zeros(41, dtype=torch.long), lengths=[41]),
            "41 tokens, but this model has 40 positions",
        ),
        (
            dict(input_ids=torch.zeros(1, 5, dtype=torch.long), attention_mask=torch.ones(1, 4)),
            "attention_mask has shape",
        ),
    ],
)
def test_wrong_calls_are_explained(model, call, says):
    with pytest.raises(UserError, match=says):
        model(**call)


def test_wrong_shapes_of_a_config_are_all_named():
    with pytest.raises(UserError, match="hidden_size 30 is not a multiple.*hidden_act is 'swish'"):
        BertConfig(hidden_size=30, num_attention_heads=4, hidden_act="swish")


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("vocab_size", 10_000_000),
        ("hidden_size", 100_000),
        ("num_hidden_layers", 1_000),
        ("num_attention_heads", 100_000),
        ("intermediate_size", 1_000_000),
        ("max_position_embeddings", 10_000_000),
        ("type_vocab_size", 100_000),
    ],
)
def test_the_largest_size_of_a_config(name, most):
    fitting = {"hidden_size": 100_000} if name == "num_attention_heads" else {}
    fitting = {"num_attention_heads": 1} if name == "hidden_size" else fitting
    assert getattr(BertConfig(**fitting, **{name: most}), name) == most
    with pytest.raises(UserError, match=f"{name} is {most + 1}, and no model's is over {most:,}"):
        BertConfig(**fitting, **{name: most + 1})


def test_the_longest_sequence_has_as_many_tokens_as_positions(model):
    ids = torch.ones(41, dtype=torch.long)
    assert model(ids[:40], lengths=[40]).start.shape == (40,)
    for call in (dict(input_ids=ids, lengths=[41]), dict(input_ids=ids[None])):
        with pytest.raises(
            UserError, match="a sequence has 41 tokens, but this model has 40 posit"
        ):
            model(**call)


@pytest.mark.parametrize(
    ("ids", "segments", "says"),
    [
        ([0, 98], [0, 1], None),
        ([0, 99], [0, 1], "input_ids has 99; this model knows 0 to 98"),
        ([-1, 5], [0, 1], "input_ids has -1; this model knows 0 to 98"),
        ([0, 98], [0, 2], "token_type_ids has 2; this model knows 0 to 1"),
        ([0, 98], [-3, 1], "token_type_ids has -3; this model knows 0 to 1"),
        ([7, 100], [0, 9], "input_ids has 100;"),
    ],
)
def test_ids_that_no_embedding_has(model, ids, segments, says):
    call = dict(token_type_ids=torch.tensor(segments), lengths=[2])
    if says is None:
        assert model(torch.tensor(ids), **call).start.shape == (2,)
        return
    with pytest.raises(UserError, match=says):
        model(torch.tensor(ids), **call)


def test_the_least_size_of_a_config():
    assert BertConfig(type_vocab_size=0).type_vocab_size == 0
    with pytest.raises(UserError, match="type_vocab_size is -1, it must be 0 or more"):
        BertConfig(type_vocab_size=-1)
    assert BertConfig(vocab_size=1).vocab_size == 1
    with pytest.raises(UserError, match="vocab_size is 0, it must be positive"):
        BertConfig(vocab_size=0)


@pytest.mark.parametrize(
    "name",
    ["layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"],
)
def test_numbers_of_a_config_go_from_0_to_1(name):
    for value in (0, 0.0, 1, 1.0):
        assert getattr(BertConfig(**{name: value}), name) == value
    for value in (-0.1, 1.1, float("nan"), True, "0.1", None):
        with pytest.raises(UserError, match=f"{name} is .*, it must be a number from 0 to 1"):
            BertConfig(**{name: value})


def renamed(theirs: dict, layers: int) -> dict:
    """transformers' tensors under our names, written out by hand: independent of the converter in model/hf.py."""
    pairs = {
        "embeddings.word_embeddings": "embeddings.word",
        "embeddings.position_embeddings": "embeddings.position",
        "embeddings.token_type_embeddings": "embeddings.segment",
        "embeddings.LayerNorm": "embeddings.norm",
    }
    for i in range(layers):
        pairs |= {
            f"encoder.layer.{i}.{a}": f"layers.{i}.{b}"
            for a, b in {
                "attention.output.dense": "attention_out",
                "attention.output.LayerNorm": "attention_norm",
                "intermediate.dense": "ffn_in",
                "output.dense": "ffn_out",
                "output.LayerNorm": "ffn_norm",
            }.items()
        }
    ours = {
        f"encoder.{b}.{kind}": theirs[f"bert.{a}.{kind}"]
        for a, b in pairs.items()
        for kind in ("weight", "bias")
        if f"bert.{a}.{kind}" in theirs
    }
    for i in range(layers):
        for kind in ("weight", "bias"):
            ours[f"encoder.layers.{i}.qkv.{kind}"] = torch.cat(
                [
                    theirs[f"bert.encoder.layer.{i}.attention.self.{part}.{kind}"]
                    for part in ("query", "key", "value")
                ]
            )
    return ours | {f"span.{kind}": theirs[f"qa_outputs.{kind}"] for kind in ("weight", "bias")}


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "relu"])
def test_tiny_random_bert_equals_transformers(act):
    """Logits of a QA model of odd sizes, padded and packed, against transformers' BertForQuestionAnswering."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers (extra `test`) is the reference"
    )
    torch.manual_seed(3)
    theirs = transformers.BertForQuestionAnswering(
        transformers.BertConfig(
            vocab_size=99,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=37,
            max_position_embeddings=40,
            hidden_act={"gelu_tanh": "gelu_pytorch_tanh"}.get(act, act),
        )
    ).eval()
    ours = BertForQuestionAnswering(TINY.replace(hidden_act=act)).eval()
    ours.load_state_dict(renamed(theirs.state_dict(), layers=3))
    ids, segments = packed()
    rows, mask, types = padded(ids, segments)
    want = theirs(rows, attention_mask=mask, token_type_ids=types)
    got = ours(ids, token_type_ids=segments, lengths=LENGTHS)
    assert (got.start - want.start_logits[mask.bool()]).abs().max() < 1e-5
    assert (ours(rows, mask, types).end - want.end_logits)[mask.bool()].abs().max() < 1e-5


def test_real_minilm_equals_transformers(shared, tmp_path):
    """Last hidden state of the real checkpoint on real questions, padded and packed, to 1e-5."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers (extra `test`) is the reference"
    )
    from bertqa.data.examples import read_examples
    from bertqa.data.tokenizer import WordPiece
    from bertqa.hf.convert import convert
    from bertqa.model import folder

    source = shared / "weights" / "all-MiniLM-L6-v2"
    theirs = transformers.AutoModel.from_pretrained(source).eval()
    convert(source, tmp_path / "minilm")
    ours = folder.load_encoder(tmp_path / "minilm")
    questions = [
        e.question
        for e in read_examples(shared / "data" / "squad2-dev-2k.json.gz", limit=8).examples
    ]
    tokens = WordPiece.load(source).encode(questions)
    lengths = tokens.counts.tolist()
    ids = torch.from_numpy(tokens.ids).long()
    rows, mask, types = padded(ids, torch.zeros_like(ids), lengths)
    with torch.inference_mode():
        want = theirs(rows, attention_mask=mask, token_type_ids=types)
        flat, square = ours(ids, lengths=lengths), ours(rows, mask, types)
    assert (flat.last_hidden_state - want.last_hidden_state[mask.bool()]).abs().max() < 1e-5
    assert (square.last_hidden_state - want.last_hidden_state)[mask.bool()].abs().max() < 1e-5
    assert (flat.pooled - want.pooler_output).abs().max() < 1e-5
