"""Things that people do to an encoder, each as short as it is, and its numbers beside transformers' or a formula's.

Meant to be read as examples: everything that is imported from `bertqa` is public. Training with a head, a loss and labels of
one's own is in test_hacks_training.py, graphs for other programs in test_onnx.py.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_checkpoints import write_checkpoint
from torch import nn

import bertqa
from bertqa import BertEncoder, Layout, WordPiece
from bertqa.hf.export import export
from bertqa.model.surgery import vocabulary

transformers = pytest.importorskip(
    "transformers", reason="transformers (extra `test`) is the reference"
)

LENGTHS = [9, 4, 7]
LAYOUT = Layout.of(LENGTHS, torch.device("cpu"))
IDS = torch.randint(5, 99, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
PADDED = dict(input_ids=LAYOUT.pad(IDS), attention_mask=LAYOUT.mask().long())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random span reader as transformers' folder, and as ours."""
    theirs = write_checkpoint(tmp_path_factory.mktemp("hacks") / "reader")
    return theirs, theirs.with_name("reader-ours")


def open_theirs(folder):
    auto = transformers.AutoModelForQuestionAnswering
    return auto.from_pretrained(folder, attn_implementation="eager").eval()


def near(ours, theirs, tolerance=1e-5) -> bool:
    print(f"differ by {(ours - theirs).abs().max():.1e}")  # shown by pytest -rP
    return (ours - theirs).abs().max() < tolerance


# Looking inside -------------------------------------------------------------------------------------------------------


def test_attention_maps_and_hidden_states(folders):
    ours = bertqa.load(folders[1])(**PADDED, output_attentions=True, output_hidden_states=True)
    theirs = open_theirs(folders[0])(**PADDED, output_attentions=True, output_hidden_states=True)
    real = LAYOUT.mask()  # (S, L): transformers computes maps and states of padding too
    for mine, other in zip(ours.attentions, theirs.attentions, strict=True):
        assert near(mine, other * real[:, None, :, None])  # (S, A, L, L)
    for mine, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert near(mine[real], other[real])


def integrated_gradients(model, words, score, steps=20):
    """(N, H) vectors -> (N,) how much each token adds to a score (Sundararajan et al. 2017), the baseline being zero."""
    total = torch.zeros_like(words)
    for step in range(1, steps + 1):
        point = (words * (step - 0.5) / steps).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score(point), point)
        total += gradient / steps
    return (total * words).sum(-1)


def test_integrated_gradients(folders):
    ours, theirs = bertqa.load(folders[1]), open_theirs(folders[0])
    words = ours.encoder.embeddings.word(IDS[:9]).detach()  # (9, H)

    def our_score(point):
        return ours(inputs_embeds=point, lengths=[9]).start[3]

    got = integrated_gradients(ours, words, our_score)
    want = integrated_gradients(
        theirs, words, lambda point: theirs(inputs_embeds=point[None]).start_logits[0, 3]
    )
    assert near(got, want)
    # What all tokens add is the score, less that of the baseline; up to the steps' coarseness.
    assert near(got.sum(), our_score(words) - our_score(0 * words), 1e-4)


# Attention of one's own -----------------------------------------------------------------------------------------------


def windowed(query, key, value, layout, dropout, reach=2):
    """Every token looks at those at most `reach` places away (Beltagy et al. 2020)."""
    places = torch.arange(layout.longest, device=query.device)
    is_near = (places[:, None] - places).abs() <= reach  # (L, L)
    rows = [layout.pad(x).transpose(1, 2) for x in (query, key, value)]  # (S, A, L, D) each
    mixed = F.scaled_dot_product_attention(*rows, attn_mask=is_near, dropout_p=dropout)
    return layout.unpad(mixed.transpose(1, 2))


def test_windowed_attention(folders):
    ours = bertqa.load(folders[1], attention=windowed)
    ids = IDS[:12][None]
    places = torch.arange(12)
    is_near = (places[:, None] - places).abs() <= 2
    mask = torch.zeros(12, 12).masked_fill(~is_near, torch.finfo(torch.float32).min)
    theirs = open_theirs(folders[0])(ids, attention_mask=mask[None, None])
    assert near(ours(ids).start, theirs.start_logits)


def alibi(query, key, value, layout, dropout):
    """softmax(Q K^T / sqrt(D) - slope * distance), a slope for each head (Press et al. 2022)."""
    heads = query.shape[1]
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)  # (A,)
    places = torch.arange(layout.longest)
    distance = (places[:, None] - places).abs()  # (L, L)
    bias = -slopes[:, None, None] * distance  # (A, L, L)
    bias = bias.masked_fill(~layout.mask()[:, None, None, :], -torch.inf)  # (S, A, L, L)
    rows = [layout.pad(x).transpose(1, 2) for x in (query, key, value)]  # (S, A, L, D) each
    mixed = F.scaled_dot_product_attention(*rows, attn_mask=bias, dropout_p=dropout)
    return layout.unpad(mixed.transpose(1, 2))


def test_alibi_without_positions_reads_longer_texts(folders):
    config = bertqa.load(folders[1]).config
    encoder = BertEncoder(config.replace(position_embedding_type="none"), attention=alibi).eval()
    assert encoder(torch.arange(700) % 99, lengths=[700]).last_hidden_state.isfinite().all()
    tokenizer = WordPiece.load(folders[0])
    found = bertqa.embed_texts(encoder, tokenizer, ["a " * 700], pool="none", max_length=800)
    assert found.vectors.shape == (702, config.hidden_size)
    q, k, v = torch.randn(3, 9, 4, 8, generator=torch.Generator().manual_seed(0))
    layout = Layout.of([6, 3], q.device)
    got = alibi(q, k, v, layout, 0.0)
    for i in range(6):  # the first sequence, written out
        for head, slope in enumerate((1 / 4, 1 / 16, 1 / 64, 1 / 256)):
            scores = [q[i, head] @ k[j, head] / 8**0.5 - slope * abs(i - j) for j in range(6)]
            assert near(got[i, head], torch.stack(scores).softmax(0) @ v[:6, head])


# Other shapes ---------------------------------------------------------------------------------------------------------


def test_dropping_layers(folders, tmp_path):
    ours, theirs = bertqa.load(folders[1]), open_theirs(folders[0])
    bertqa.keep_layers(ours, [0, 2])
    theirs.bert.encoder.layer = nn.ModuleList(theirs.bert.encoder.layer[i] for i in (0, 2))
    bertqa.save(tmp_path / "small", ours)
    small = bertqa.load(tmp_path / "small")
    assert near(small(IDS[None]).start, theirs(IDS[None]).start_logits)


def test_a_new_token(folders, tmp_path):
    ours, theirs = bertqa.load(folders[1]), open_theirs(folders[0])
    tokens = [*vocabulary(folders[0]), "covid19"]
    bertqa.resize_vocabulary(ours, tokens, folders[0], tmp_path / "tokenizer")
    bertqa.save(tmp_path / "new", ours, tokenizer_from=tmp_path / "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0])
    tokenizer.add_tokens(["covid19"])
    ids = tokenizer("a covid19 b", add_special_tokens=False).input_ids
    assert WordPiece.load(tmp_path / "new").encode(["a covid19 b"]).ids.tolist() == ids
    theirs.resize_token_embeddings(len(tokens))
    theirs.get_input_embeddings().weight.data[-1] = ours.encoder.embeddings.word.weight[-1]
    ids = torch.tensor([ids])
    assert near(bertqa.load(tmp_path / "new")(ids).start, theirs(ids).start_logits)


def test_sinusoids_for_positions_and_frozen_layers(folders):
    """Positions of Vaswani et al. 2017; embeddings and the first layer stay as they are while the rest learns."""
    ours, theirs = bertqa.load(folders[1]), open_theirs(folders[0])
    angles = torch.arange(512)[:, None] / 10000 ** (torch.arange(0, 32, 2) / 32)  # (512, H / 2)
    table = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)  # (512, H)
    ours.encoder.embeddings.position = nn.Embedding.from_pretrained(table)
    theirs.bert.embeddings.position_embeddings = nn.Embedding.from_pretrained(table)
    for lower in (ours.encoder.embeddings, ours.encoder.layers[0]):
        lower.requires_grad_(False)
    for lower in (theirs.bert.embeddings, theirs.bert.encoder.layer[0]):
        lower.requires_grad_(False)
    before = copy.deepcopy(ours.state_dict())
    for model in (ours, theirs):
        out = model(IDS[None])
        out[0].square().sum().backward()
        trained = [p for p in model.parameters() if p.grad is not None]
        torch.optim.SGD(trained, lr=1e-3).step()
    moved = {name for name, tensor in ours.state_dict().items() if not tensor.equal(before[name])}
    assert moved and not any("embeddings" in name or "layers.0" in name for name in moved)
    assert near(ours(IDS[None]).start, theirs(IDS[None]).start_logits)


# Adapters, towers, transforms -----------------------------------------------------------------------------------------


class Lora(nn.Linear):
    """W x + B A x (Hu et al. 2021). A Linear, so that what it was keeps its names; `merge` makes it one again."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__(linear.in_features, linear.out_features)
        self.load_state_dict(linear.state_dict())
        self.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / rank)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T

    def merge(self) -> nn.Linear:
        merged = nn.Linear(self.in_features, self.out_features)
        merged.load_state_dict({"weight": self.weight + self.up @ self.down, "bias": self.bias})
        return merged


def test_lora(folders, tmp_path):
    """Adapters on queries, keys and values learn; saved beside the weights, filled again, merged, and read by transformers."""
    model = bertqa.load(folders[1])
    model.encoder.requires_grad_(False)
    for layer in model.encoder.layers:
        layer.qkv = Lora(layer.qkv, rank=4)
    assert sum(p.numel() for p in model.encoder.parameters() if p.requires_grad) == 3 * 4 * (
        32 + 96
    )
    for _ in range(2):
        model(IDS, lengths=LENGTHS).start.square().sum().backward()
        torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-3).step()
    bertqa.save(tmp_path / "adapted", model)
    again = bertqa.load(folders[1])
    for layer in again.encoder.layers:
        layer.qkv = Lora(layer.qkv, rank=4)
    assert bertqa.load_into(again, tmp_path / "adapted") == []
    for layer in again.encoder.layers:
        layer.qkv = layer.qkv.merge()
    bertqa.save(tmp_path / "merged", again)
    export(tmp_path / "merged", tmp_path / "theirs")
    start = open_theirs(tmp_path / "theirs")(IDS[None]).start_logits
    assert near(model(IDS[None]).start, start)
    assert not near(bertqa.load(folders[1])(IDS[None]).start, start, 1e-3)


def test_two_towers(folders):
    """Questions and passages by two encoders, every other passage of the batch being wrong (Karpukhin et al. 2020)."""
    questions, passages = bertqa.load_encoder(folders[1]), bertqa.load_encoder(folders[1])
    other = Layout.of([5, 5, 10], IDS.device)
    left = bertqa.pooled(questions(IDS, lengths=LAYOUT), LAYOUT, "mean", -1)  # (S, H)
    right = bertqa.pooled(passages(IDS, lengths=other), other, "mean", -1)  # (S, H)
    loss = F.cross_entropy(left @ right.T, torch.arange(3))
    loss.backward()
    assert all(p.grad is not None for p in (*questions.parameters(), *passages.parameters()))
    vectors = []
    for layout in (LAYOUT, other):
        mask = layout.mask()
        states = open_theirs(folders[0]).bert(layout.pad(IDS), mask.long()).last_hidden_state
        vectors.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    assert near(left, vectors[0]) and near(right, vectors[1])
    assert near(loss, F.cross_entropy(vectors[0] @ vectors[1].T, torch.arange(3)))


def test_gradients_of_each_sample_by_functional_transforms(folders):
    """vmap of grad (torch.func) over sequences of one length, beside a loop of backward passes in transformers."""
    ours, theirs = bertqa.load(folders[1]), open_theirs(folders[0])
    rows = IDS[:18].view(3, 6)
    layout = Layout.of([6], IDS.device)
    parameters = {name: p.detach() for name, p in ours.named_parameters()}

    def loss(parameters, ids):
        out = torch.func.functional_call(ours, parameters, (ids,), {"lengths": layout})
        return out.start.square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, rows)
    for row in range(3):
        theirs.zero_grad()
        theirs(rows[row][None]).start_logits.square().sum().backward()
        assert near(each["span.weight"][row], theirs.qa_outputs.weight.grad)
        words = theirs.bert.embeddings.word_embeddings.weight.grad
        assert near(each["encoder.embeddings.word.weight"][row], words)
