# SPDX-License-Identifier: MIT
"""Rows of what is added to tokens, 8 × 1024 × 512, and of rotations, q and k 4 × 2048 × 8 × 64."""

import torch
from torch import nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from measure import Backward, Peer, Row
from ours import Module, Shape
from packages import bio, xt, zeta_half, zeta_rope, zeta_xpos

B, L, DIM = 8, 1024, 512
tokens = Shape(B, L, 0, DIM)
size = "8×1024×512"


def adds(module, threads):
    return lambda x: module.bound("mod_x", x, tokens, threads, result=x)


def x():
    return (torch.randn(B, L, DIM),)


def sinusoidal(half):
    def make(threads):
        module = Module("sinusoidal", DIM, half)
        if half:
            made = xt.ScaledSinusoidalEmbedding(DIM)
            nn.init.ones_(made.scale)
            peers = [Peer("x-transformers", lambda x: x + made(x)), Peer("x-transformers, x +=", lambda x: x.add_(made(x)))]
        else:
            made = bio.Sinusoidal(DIM)
            peers = [Peer("bio-attention", lambda x: made.mod_x(x))]
        return x(), adds(module, threads), peers

    return make


def sinusoidal_kept(threads):
    kept = bio.Sinusoidal(DIM).mod_x(torch.zeros(1, L, DIM))[0]
    module = Module("sinusoidal", DIM, False).reserve(L)
    return x(), adds(module, threads), [
        Peer("torch, x += table", lambda x: x.add_(kept)), Peer("torch, x + table", lambda x: x + kept)
    ]


def vocab_modules():
    """The packages' modules over one table, and the positions of all tokens."""
    table = nn.Embedding(L, DIM)
    bio_module, x_module = bio.LearnedVocab(DIM, L), xt.AbsolutePositionalEmbedding(DIM, L)
    bio_module.emb = x_module.emb = table
    x_module.scale = 1.0
    return table, bio_module, x_module, torch.arange(L)


def learned_vocab(threads):
    table, bio_module, x_module, positions = vocab_modules()
    peers = [
        Peer("bio-attention", lambda x: bio_module.mod_x(x)),
        Peer("x-transformers", lambda x: x + x_module(x)),
        Peer("torch nn.Embedding, x +=", lambda x: x.add_(table(positions))),
        Peer("torch, x += weight", lambda x: x.add_(table.weight)),
    ]
    return x(), adds(Module("learned_vocab", DIM, L, **{"emb.weight": table.weight}), threads), peers


def learned_vocab_backward(threads):
    table, bio_module, x_module, positions = vocab_modules()
    module = Module("learned_vocab", DIM, L)
    grad = torch.randn(B, L, DIM)

    def ours(_):
        return module.summing("emb.weight", table.weight, "mod_x_backward", grad, tokens, threads)

    def peer(name, run):
        return Backward(name, run, lambda _: [table.weight], grad)

    return x(), ours, [
        peer("bio-attention", lambda x: bio_module.mod_x(x)),
        peer("x-transformers", lambda x: x + x_module(x)),
        peer("torch nn.Embedding", lambda x: x + table(positions)),
        peer("torch, x + weight", lambda x: x + table.weight),
    ]


def learned_continuous(depth):
    def make(threads):
        made = bio.LearnedContinuous(DIM, depth=depth, divide=float(L))
        module = Module("learned_continuous", DIM, depth, float(L)).load(dict(made.named_parameters()))
        return x(), adds(module, threads), [Peer("bio-attention", lambda x: made.mod_x(x))]

    return make


NH, H = 8, 64
heads = Shape(4, 2048, NH, H)


def head_first(q, k):
    """(B, NH, L, H), as most packages take it, made before the clock starts."""
    return q.transpose(1, 2).contiguous(), k.transpose(1, 2).contiguous()


def token_first(out):
    return [tensor.transpose(1, 2) for tensor in out]


def q_and_k(shape=heads):
    return torch.randn(shape.B, shape.L, NH, H), torch.randn(shape.B, shape.L, NH, H)


def rotates(half, kept, threads, shape=heads, start=0):
    """Ours; `kept`: with a table from before, as long as it takes."""
    module = Module("rotary", H, half)
    if kept:
        module.reserve(start + shape.L)
    return lambda q, k: module.bound("mod_qkv", q, k, start, shape, threads, result=(q, k))


def complex_product(q, k, turns):
    """Meta's Llama: the pairs of features as complex numbers."""

    def turn(t):
        return torch.view_as_real(torch.view_as_complex(t.view(*t.shape[:-1], -1, 2)) * turns).flatten(-2)

    return turn(q), turn(k)


def complex_product_in_place(q, k, turns):
    for t in (q, k):
        torch.view_as_complex(t.view(*t.shape[:-1], -1, 2)).mul_(turns)
    return q, k


def complex_turns(length):
    angles = torch.arange(length)[:, None] * 10000 ** (-torch.arange(0, H, 2) / H)
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def rotary_interleaved(cold):
    def make(threads):
        made, x_made = bio.Rotary(H), xt.RotaryEmbedding(H)
        frequencies, _ = x_made.forward_from_seq_len(heads.L)
        turns = complex_turns(heads.L)
        sin, cos = zeta_xpos.fixed_pos_embedding(torch.empty(heads.L, H // 2))

        def x_transformers(q, k):
            f = x_made.forward_from_seq_len(heads.L)[0] if cold else frequencies
            return xt.apply_rotary_pos_emb(q, f), xt.apply_rotary_pos_emb(k, f)

        def zeta(q, k):
            s, c = zeta_xpos.fixed_pos_embedding(torch.empty(heads.L, H // 2)) if cold else (sin, cos)
            return [zeta_xpos.apply_rotary_pos_emb(t.view(-1, heads.L, H), s, c).view(t.shape) for t in (q, k)]

        peers = [
            Peer("x-transformers", x_transformers, head_first, token_first),
            Peer("zetascale (xPos)", zeta, head_first, token_first),
        ]
        if cold:
            peers += [
                Peer("bio-attention", lambda q, k: made.mod_qkv(q, k, k)[:2]),
                Peer("torch, complex product", lambda q, k: complex_product(q, k, complex_turns(heads.L)), modes=("",)),
                Peer("torch, complex product in place",
                     lambda q, k: complex_product_in_place(q, k, complex_turns(heads.L)), modes=("",)),
            ]
        else:
            peers += [
                Peer("torch, complex product", lambda q, k: complex_product(q, k, turns), modes=("",)),
                Peer("torch, complex product in place", lambda q, k: complex_product_in_place(q, k, turns), modes=("",)),
            ]
        return q_and_k(), rotates(False, not cold, threads), peers

    return make


def llama():
    return LlamaRotaryEmbedding(LlamaConfig(hidden_size=NH * H, num_attention_heads=NH, head_dim=H))


def rotary_half(cold):
    def make(threads):
        made, z_made, r_made = llama(), zeta_half.SinusoidalEmbeddings(H), zeta_rope.RotaryEmbedding(H)
        ids = torch.arange(heads.L)[None]
        cos, sin = made(torch.empty(0), ids)
        frequencies, one = z_made(torch.empty(heads.L, H))

        def hugging_face(dim):
            return lambda q, k: apply_rotary_pos_emb(q, k, *(made(q, ids) if cold else (cos, sin)), unsqueeze_dim=dim)

        def zeta(q, k):
            return zeta_half.apply_rotary_pos_emb(q, k, *(z_made(q) if cold else (frequencies, one)))

        def zeta_broken(q, k):
            f = r_made(heads.L, "cpu")[0]
            return zeta_rope.apply_rotary_pos_emb(q, f), zeta_rope.apply_rotary_pos_emb(k, f)

        return q_and_k(), rotates(True, not cold, threads), [
            Peer("Hugging Face Llama", hugging_face(1), head_first, token_first),
            Peer("Hugging Face Llama, (B, L, NH, H)", hugging_face(2)),
            Peer("zetascale", zeta, head_first, token_first),
            Peer("zetascale (rope.py)", zeta_broken, head_first, token_first, modes=("",)),
        ]

    return make


def rotary_decode(threads):
    made, start, one = llama(), 100_000, Shape(1, 1, NH, H)
    cos, sin = made(torch.empty(0), torch.arange(start + 1)[None])

    def kept(q, k):
        at = slice(start, start + 1)
        return apply_rotary_pos_emb(q, k, cos[:, at], sin[:, at], unsqueeze_dim=2)

    ids = torch.tensor([[start]])
    return q_and_k(one), rotates(True, True, threads, one, start), [
        Peer("Hugging Face Llama, table kept", kept),
        Peer("Hugging Face Llama", lambda q, k: apply_rotary_pos_emb(q, k, *made(q, ids), unsqueeze_dim=2)),
    ]


def rotary_backward(threads):
    module, made = Module("rotary", H, True).reserve(heads.L), llama()
    cos, sin = made(torch.empty(0), torch.arange(heads.L)[None])
    grads = q_and_k()

    def ours(q, k):
        grad_q, grad_k = (g.clone() for g in grads)
        return module.bound("mod_qkv_backward", grad_q, grad_k, q, k, heads, threads, result=(grad_q, grad_k))

    def peer(name, dim, **others):
        return Backward(name, lambda q, k: apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=dim),
                        lambda q, k: [q, k], [g if dim == 2 else g.transpose(1, 2).contiguous() for g in grads], **others)

    return q_and_k(), ours, [
        peer("Hugging Face Llama", 1, arrange=head_first, result=token_first),
        peer("Hugging Face Llama, (B, L, NH, H)", 2),
    ]


rows = [
    Row("Sinusoidal", f"x += table made in the call, interleaved, {size}", sinusoidal(False), 1e-3),
    Row("Sinusoidal", f"x += table made in the call, half, {size}", sinusoidal(True), 1e-3),
    Row("Sinusoidal", f"x += table kept from before, interleaved, {size}", sinusoidal_kept, 1e-3),
    Row("LearnedVocab", f"x += weight[p], {size}", learned_vocab),
    Row("LearnedVocab", f"backward, {size}", learned_vocab_backward),
    Row("LearnedContinuous", f"x += MLP of depth 1, {size}", learned_continuous(1)),
    Row("LearnedContinuous", f"x += MLP of depth 2, {size}", learned_continuous(2)),
    Row("Rotary", "q and k 4×2048×8×64, interleaved, table made in the call", rotary_interleaved(True), 1e-3),
    Row("Rotary", "q and k 4×2048×8×64, half, table made in the call", rotary_half(True), 1e-3),
    Row("Rotary", "q and k 4×2048×8×64, interleaved, table kept from before", rotary_interleaved(False), 1e-3),
    Row("Rotary", "q and k 4×2048×8×64, half, table kept from before", rotary_half(False), 1e-3),
    Row("Rotary", "q and k of one new token, 8×64, at 100 000, half, table kept", rotary_decode, 1e-2),
    Row("Rotary", "backward, q and k 4×2048×8×64, half, table kept", rotary_backward, 1e-3),
]
