"""int8 on CPUs: its arithmetic, the processors and builds of torch that lack it, and that a text gets what it gets alone."""

import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bertqa import Reader, UserError, embed, embed_texts, predict
from bertqa.data.examples import Example
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.device import autocast
from bertqa.inference import forward_all, span_scores
from bertqa.model import folder, prepack
from bertqa.model.products import (
    CalibratedLinear,
    PackedLinear,
    TokenwiseLinear,
    has_calibrated_products,
    to_uint8,
)
from bertqa.model.ranges import read_ranges, watched

READER = Path(__file__).resolve().parents[1] / "weights" / "minilm-squad2"
needs_vnni = pytest.mark.skipif(
    not has_calibrated_products(),
    reason="this processor or this build of torch has no calibrated products (VNNI)",
)
needs_bf16 = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="this processor has no bf16 units"
)
needs_packing = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"),
    reason="nothing is packed for this processor",
)


@pytest.fixture
def forgotten():
    """What is known of this processor is found out anew in the test, and again behind it."""
    has_calibrated_products.cache_clear()
    yield
    has_calibrated_products.cache_clear()


# ---- arithmetic ----


def in_integers(x: np.ndarray, zero: int, weight: np.ndarray) -> np.ndarray:
    """(N, in) uint8 and (out, in) int8 -> (N, out): the sums that a product in integers is made of, one by one."""
    sums = np.zeros((len(x), len(weight)), np.int64)
    for row in range(len(x)):
        for column in range(len(weight)):
            for channel in range(x.shape[1]):
                sums[row, column] += (int(x[row, channel]) - zero) * int(weight[column, channel])
    return sums


def rounded_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(out, in) float32 -> int8, and the scale of each row."""
    scale = np.abs(weight).max(1) / np.float32(127)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


@pytest.fixture
def numbers():
    """Inputs (5, 24) of which one channel is 40 times as large as the others, weights (7, 24), a bias."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(5, 24)).astype(np.float32)
    x[:, 3] *= 40
    weight = draw.normal(size=(7, 24)).astype(np.float32)
    return x, weight, draw.normal(size=7).astype(np.float32)


def reach_of(x: np.ndarray, each_channel: bool) -> np.ndarray:
    ends = np.stack([x.min(0), x.max(0)])
    return ends if each_channel else np.array([[ends[0].min()], [ends[1].max()]], np.float32)


@needs_vnni
@pytest.mark.parametrize("smoothed", [False, True])
def test_a_calibrated_product_is_a_loop_over_integers(numbers, smoothed):
    x, weight, bias = numbers
    reach = reach_of(x, smoothed)
    linear = CalibratedLinear(*map(torch.from_numpy, (weight, bias, reach)))

    factor = np.ones(24, np.float32)
    if smoothed:
        largest = np.abs(reach).max(0)
        factor = np.sqrt(largest / np.abs(weight).max(0))
    least = min(0, (reach / factor).min())
    scale = ((reach / factor).max() - least) / 255
    zero = round(-least / scale)
    inputs = np.clip(np.rint(x / factor / scale) + zero, 0, 255)
    seen = linear.rounded(torch.from_numpy(x)).numpy()
    assert seen.dtype == np.uint8 and np.abs(seen - inputs).max() <= 1  # at ties
    assert (seen == inputs).mean() > 0.95

    whole, row_scale = rounded_weight(weight * factor)
    sums = in_integers(seen, zero, whole)
    want = sums * (scale * row_scale) + bias
    got = linear(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    # the sums themselves, to the last unit
    steps = (got.astype(np.float64) - bias) / (scale * row_scale)
    assert np.abs(steps - sums).max() < 0.5 and np.abs(sums).max() > 1000
    # and near to what it stands for: nearer where the large channel is smoothed
    error = np.abs(got - (x @ weight.T + bias)).max()
    assert error < (1.0 if smoothed else 6.0)

    kept = torch.from_numpy(np.random.default_rng(1).normal(size=got.shape).astype(np.float32))
    before = kept.clone()
    summed = linear(torch.from_numpy(x), onto=kept).numpy()
    np.testing.assert_allclose(summed, want + before.numpy(), rtol=1e-5, atol=1e-5)
    assert torch.equal(kept, before)  # a hidden state, which may be asked for


@needs_vnni
@pytest.mark.parametrize("activation", [F.gelu, F.relu], ids=["gelu", "relu"])
def test_activations_are_rounded_inside_to_what_the_next_product_takes(numbers, activation):
    x, weight, bias = map(torch.from_numpy, numbers)
    plain = CalibratedLinear(weight, bias, torch.from_numpy(reach_of(numbers[0], True)))
    between = activation(plain(x))  # (5, 7)
    reach = torch.stack([between.min(), between.max()])[:, None]
    behind = CalibratedLinear(torch.randn(4, 7), torch.randn(4), reach)
    reach_in = torch.from_numpy(reach_of(numbers[0], True))
    linear = CalibratedLinear(weight, bias, reach_in, activation, output=behind)

    got = linear(x)
    want = torch.round(between / behind.scale).add(behind.zero).clamp(0, 255)
    assert got.dtype == torch.uint8 and (got.float() - want).abs().max() <= 1
    assert len(got.unique()) > 10
    exact = in_integers(got.numpy(), behind.zero, behind.plain.numpy())
    scales = behind.scale * behind.row_scale.numpy()
    np.testing.assert_allclose(
        behind(got).numpy(), exact * scales + behind.bias.numpy(), rtol=1e-4, atol=1e-4
    )


@needs_vnni
def test_an_activation_in_float_is_that_of_the_product(numbers):
    x, weight, bias = map(torch.from_numpy, numbers)
    reach = torch.from_numpy(reach_of(numbers[0], False))
    plain = CalibratedLinear(weight, bias, reach)(x)
    linear = CalibratedLinear(weight, bias, reach, F.gelu, output=torch.bfloat16)
    assert torch.allclose(linear(x).float(), F.gelu(plain), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("without", [False, True])
def test_rounding_to_eight_bits(monkeypatch, without):
    """Also in a torch that has lost its quantized tensors."""
    if without:
        monkeypatch.delattr(torch, "quantize_per_tensor")
    x = torch.tensor([[-9.0, -1.0, 0.0], [0.019, 4.1, 77.0]])
    want = [[0, 0, 50], [51, 255, 255]]
    assert to_uint8(x, 0.02, 50).tolist() == want
    # with gaps between its rows, as an attention that gives back its values leaves them
    assert to_uint8(x.repeat(1, 3)[:, :3], 0.02, 50).tolist() == want


# ---- processors and builds that lack something ----


@pytest.fixture
def tiny(tiny_model):
    """A model and the ranges of its products."""
    model = folder.load(tiny_model)
    with torch.inference_mode(), watched(model.encoder) as ranges:
        model(torch.arange(5, 36), lengths=[20, 11])
    return model, ranges


def kinds(model) -> set:
    found = (CalibratedLinear, PackedLinear, TokenwiseLinear)
    return {type(module) for module in model.modules() if type(module) in found}


def lacks_vnni(patch):
    patch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)


def lacks_operators(patch):
    patch.setattr(torch.ops, "onednn", types.SimpleNamespace())


def lacks_a_good_result(patch):
    patch.setattr(CalibratedLinear, "forward", lambda self, x, onto=None: torch.zeros(2, 2))


def lacks_onednn(patch):
    patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


@pytest.mark.parametrize("lack", [lacks_vnni, lacks_operators, lacks_a_good_result, lacks_onednn])
def test_without_calibrated_products_tokens_are_scaled_one_by_one(
    tiny, forgotten, monkeypatch, lack
):
    model, ranges = tiny
    lack(monkeypatch)
    assert not has_calibrated_products()
    made = prepack.int8(model, ranges)
    assert kinds(made) == {TokenwiseLinear}
    ids = torch.arange(5, 36)
    with torch.inference_mode():
        near = torch.stack(made(ids, lengths=[31]))
        exact = torch.stack(model(ids, lengths=[31]))
    assert 0 < (near - exact).abs().max() < 0.1 * (exact.max() - exact.min())


def test_without_vnni_inputs_have_seven_bits(monkeypatch):
    """In pairs of eight bits they would overflow 16."""
    weight = torch.full((4, 8), 1.0)
    assert TokenwiseLinear(weight, torch.zeros(4)).seven_bits is not torch.cpu._is_vnni_supported()
    lacks_vnni(monkeypatch)
    assert TokenwiseLinear(weight, torch.zeros(4)).seven_bits is True


@needs_vnni
def test_with_calibrated_products_ranges_are_used(tiny):
    model, ranges = tiny
    assert kinds(prepack.int8(model, ranges)) == {CalibratedLinear}
    assert kinds(prepack.int8(model)) == {TokenwiseLinear}


@needs_vnni
def test_without_bf16_units_attention_has_float32(tiny, monkeypatch):
    model, ranges = tiny
    ids = torch.arange(5, 36)
    with torch.inference_mode():
        exact = torch.stack(model(ids, lengths=[31]))
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        made = prepack.int8(model, ranges)
        near = torch.stack(made(ids, lengths=[31]))
        assert made.encoder.layers[0].qkv.output == torch.float32
        assert prepack.pack(model, torch.bfloat16) is model
    assert 0 < (near - exact).abs().max() < 0.1 * (exact.max() - exact.min())


@needs_packing
def test_a_torch_without_packed_products_leaves_the_model_as_it_is(tiny, monkeypatch):
    model, _ = tiny
    assert prepack.pack(model) is not model
    monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())
    assert prepack.pack(model) is model


@needs_vnni
def test_int8_of_the_bundled_reader_is_near():
    model = folder.load(READER)
    ids = torch.randint(1000, 20000, (120,), generator=torch.Generator().manual_seed(0))
    made = prepack.int8(model, read_ranges(READER, model.encoder))
    with torch.inference_mode():
        exact = torch.stack(model(ids, lengths=[50, 70]))
        near = torch.stack(made(ids, lengths=[50, 70]))
    assert 0 < (exact - near).abs().max() < 0.15 * (exact.max() - exact.min())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_measured", [True, False])
def test_int8_is_made_of_float32_alone(tiny, dtype, is_measured):
    model, ranges = tiny
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=f"int8 .* float32 .* {name}.* model.float\\(\\)"):
        prepack.int8(model.to(dtype), ranges if is_measured else None)
    prepack.int8(model.float())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("is_measured", [True, False])
def test_int8_of_weights_that_are_no_numbers_is_refused(tiny, number, is_measured):
    model, ranges = tiny
    with torch.no_grad():
        model.encoder.layers[1].ffn_in.weight[3, 4] = number
    with pytest.raises(UserError, match="layers.1.ffn_in.weight .* NaN or infinite"):
        prepack.int8(model, ranges if is_measured else None)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: model.double(), "float32 .* float64"),
        (
            lambda model: model.encoder.layers[0].qkv.bias.data.fill_(float("nan")),
            "qkv.bias .* NaN",
        ),
    ],
)
def test_a_reader_in_int8_of_such_a_folder(tiny_model, tmp_path, spoil, message):
    model = folder.load(tiny_model)
    spoil(model)
    folder.save(tmp_path / "spoilt", model)
    with pytest.raises(UserError, match=message):
        Reader.load(tmp_path / "spoilt", int8=True)


# ---- a text gets what it gets alone ----

CALIBRATED = pytest.param("calibrated", 0, marks=needs_vnni)
TOKENWISE = ("tokenwise", 0)
FP32 = ("fp32", 1e-5)
BF16 = pytest.param("bf16", 0.02, marks=needs_bf16)
formats = pytest.mark.parametrize(("format", "most"), [CALIBRATED, TOKENWISE, FP32, BF16])
QUESTION = "where is c?"
TEXT = "a x q c h j u t e"


def made_in(format: str, model, ranges):
    """The model in a format, and the dtype of the autocast that it is called under."""
    if format == "calibrated":
        return prepack.int8(model, ranges), torch.float32
    if format == "tokenwise":
        return prepack.int8(model), torch.float32
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[format]
    return prepack.pack(model, dtype), dtype


def others(count: int = 40) -> list[str]:
    """Texts of all lengths, from one letter to more than a window."""
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(list("abcdefghijkl"), size)) for size in range(1, 2 * count, 2)]


@formats
def test_an_answer_does_not_depend_on_what_is_asked_beside_it(tiny, tiny_model, format, most):
    model, dtype = made_in(format, *tiny)
    reader = Reader(model, WordPiece.load(tiny_model), {"max_length": 48}, dtype=dtype)
    alone = reader.answer(QUESTION, TEXT, top_k=5, allow_no_answer=False)
    pairs = [("who?", text) for text in others()]
    for place in (0, 17, 40):
        asked = [*pairs[:place], (QUESTION, TEXT), *pairs[place:]]
        found = list(reader.answer_many(asked, top_k=5, allow_no_answer=False))[place]
        assert [answer.answer for answer in found] == [answer.answer for answer in alone]
        for one, other in zip(found, alone, strict=True):
            assert abs(one.score - other.score) <= most


@formats
@pytest.mark.parametrize("pool", ["mean", "cls", "none"])
def test_a_vector_does_not_depend_on_the_texts_beside_it(tiny, tiny_model, format, most, pool):
    model, dtype = made_in(format, *tiny)
    options = dict(pool=pool, max_length=64, dtype=dtype)
    tokenizer = WordPiece.load(tiny_model)
    alone = embed_texts(model.encoder, tokenizer, [TEXT], **options).vectors
    together = embed_texts(model.encoder, tokenizer, [*others(), TEXT], **options).vectors
    assert np.abs(together[-len(alone) :] - alone).max() <= most


def windows_of(tiny_model, texts):
    examples = [Example(str(n), QUESTION, text, (), ()) for n, text in enumerate(texts)]
    return build_windows(
        examples, WordPiece.load(tiny_model), max_length=48, overlap=8, max_question=12
    )


def logits_by_window(model, dtype, windows, tokens: int | None = None) -> dict:
    """Of each window its start and end logits."""

    def compute(batch, layout):
        return span_scores(
            model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        )

    device = torch.device("cpu")
    found = {}
    cast = autocast(device, dtype)
    for rows, scores in forward_all(
        compute, windows, device, model=model, autocast=cast, tokens=tokens
    ):
        ends = np.cumsum(windows.lengths[rows])[:-1]
        for row, start, end in zip(rows, *(np.split(part, ends) for part in scores), strict=True):
            found[int(row)] = np.stack([start, end])
    return found


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@formats
def test_logits_of_a_window_do_not_depend_on_its_batch_or_thread(
    tiny, tiny_model, threads, format, most
):
    model, dtype = made_in(format, *tiny)
    windows = windows_of(tiny_model, others())
    together = logits_by_window(model, dtype, windows)
    apart = logits_by_window(model, dtype, windows, tokens=1)  # a batch each
    assert together.keys() == apart.keys() == set(range(len(windows))) and len(windows) > 40
    for row, logits in apart.items():
        assert np.abs(logits - together[row]).max() <= most


@formats
def test_threads_compute_what_one_computes(tiny, tiny_model, format, most):
    model, dtype = made_in(format, *tiny)
    windows = windows_of(tiny_model, others())
    found = []
    before = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(logits_by_window(model, dtype, windows, tokens=100))
    torch.set_num_threads(before)
    assert list(found[0]) == list(found[1])  # in the same order
    for row in found[0]:
        assert np.array_equal(found[0][row], found[1][row])


# ---- threads ----


def workers() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("ThreadPoolExecutor")]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@needs_packing
def test_an_error_in_a_thread_comes_out_as_itself(tiny, tiny_model, two_threads):
    model = prepack.pack(tiny[0])
    seen = set()

    def compute(batch, layout):
        seen.add(threading.current_thread().name)
        if batch.longest < 20:
            raise ZeroDivisionError("mine")
        return span_scores(model(batch.input_ids, lengths=layout))

    windows = windows_of(tiny_model, others())
    before = workers()
    with pytest.raises(ZeroDivisionError, match="mine"):
        list(forward_all(compute, windows, torch.device("cpu"), model=model, tokens=64))
    assert seen and all(name.startswith("ThreadPoolExecutor") for name in seen)
    assert workers() == before


@needs_packing
def test_who_stops_early_leaves_no_thread(tiny, tiny_model, two_threads):
    model = prepack.pack(tiny[0])
    computed = []

    def compute(batch, layout):
        computed.append(len(batch.lengths))
        return span_scores(model(batch.input_ids, lengths=layout))

    windows = windows_of(tiny_model, others(120))
    before = workers()
    parts = forward_all(compute, windows, torch.device("cpu"), model=model, tokens=48)
    next(parts)
    assert len(workers()) > len(before)
    parts.close()
    assert workers() == before


@needs_packing
def test_threads_of_others_keep_their_number(tiny, tiny_model, two_threads):
    """torch begins each new thread with the number that was set last, in whichever thread."""
    model = prepack.pack(tiny[0])
    logits_by_window(model, torch.float32, windows_of(tiny_model, others()), tokens=64)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def test_a_model_that_is_not_packed_is_called_by_one_thread(tiny, tiny_model, two_threads):
    model, _ = tiny
    seen = set()

    def compute(batch, layout):
        seen.add(threading.current_thread())
        return span_scores(model(batch.input_ids, lengths=layout))

    windows = windows_of(tiny_model, others())
    list(forward_all(compute, windows, torch.device("cpu"), model=model, tokens=64))
    assert seen == {threading.current_thread()}


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "bfloat16", torch.bfloat16])
def test_int8_beside_16_bits_is_refused(tiny_model, dtype):
    with pytest.raises(UserError, match=r"int8 and (bf|fp|bfloat)16 are two .*; choose one"):
        Reader.load(tiny_model, "cpu", dtype, int8=True)


@pytest.mark.filterwarnings("ignore:int8:bertqa.SpeedHint")
def test_int8_beside_float32_is_what_it_is(tiny_model):
    asked = ("where is c?", "a b c d")
    named = Reader.load(tiny_model, "cpu", "fp32", int8=True)
    assert named.answer(*asked) == Reader.load(tiny_model, "cpu", int8=True).answer(*asked)


def test_int8_beside_16_bits_is_refused_by_the_verbs(tiny_model, copy, tmp_path):
    asks = [
        (predict, tiny_model, ["--question", "where is c?", "--context", "a b c d"]),
        (predict, tiny_model, ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]),
        (predict, copy("bert-classes"), ["--text", "a b"]),
        (embed, tiny_model, ["--text", "a b"]),
    ]
    for verb, model, ask in asks:
        with pytest.raises(UserError, match="int8 and bf16 are two number formats"):
            verb.main(["--model", str(model), *ask, "--int8", "--precision", "bf16"])
    assert not (tmp_path / "out").exists()
