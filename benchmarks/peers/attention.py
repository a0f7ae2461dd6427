# SPDX-License-Identifier: MIT
"""Rows of whole attention: fused with a bias, and the layer RelativeAttention."""

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from biases import t5, t5_modules, x_alibi
from measure import Backward, Peer, Row
from ours import Module, Shape
from packages import edspdf, xt

NH, H = 8, 64


def biased(kind):
    """A module of ours, a function that makes the bias (NH, L, L), one that makes it for FlexAttention, and the weight."""
    if kind == "ALiBi":
        x = xt.AlibiPositionalBias(NH)

        def alibi_score(length):
            slopes = x.slopes.flatten()
            return lambda score, b, h, i, j: score - slopes[h] * (i - j).abs()

        return Module("alibi", NH), lambda length: x_alibi(x, length), alibi_score, None
    made, weight = t5_modules(NH)

    def t5_score(length):
        bias = made["zetascale"](length)
        diagonals = torch.cat((bias[:, :, 0].flip(-1), bias[:, 0, 1:]), dim=-1).contiguous()  # at j - i + L - 1
        return lambda score, b, h, i, j: score + diagonals[h, j - i + length - 1]

    return t5(weight), made["zetascale"], t5_score, weight


def inputs(length):
    return tuple(torch.randn(1, length, NH, H) for _ in range(3))


def head_first(*tensors):
    """Views (B, NH, L, H) of what projections give, as torch's attention takes them."""
    return tuple(tensor.transpose(1, 2) for tensor in tensors)


def hide(bias, causal):
    """What is ahead of a query hidden, since torch takes a bias or is_causal."""
    length = bias.shape[-1]
    return bias.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf) if causal else bias


def attend(q, k, v, bias):
    return scaled_dot_product_attention(q, k, v, attn_mask=bias[None])


def forward(kind, length, causal):
    def make(threads):
        module, make_bias, make_score, _ = biased(kind)
        shape = Shape(1, length, NH, H)
        kept = hide(make_bias(length), causal).contiguous()

        def ours(q, k, v):
            out, log_sum_exp = torch.empty_like(q), torch.empty(1, NH, length)
            return module.bound("attend", (out, q, k, v, log_sum_exp), shape, causal, threads, result=out)

        def flex(q, k, v):
            return flex_attention(q, k, v, score_mod=score, block_mask=block_mask)

        score = make_score(length)
        block_mask = None
        if causal:
            block_mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device="cpu")
        arranged = {"arrange": head_first, "result": lambda out: out.transpose(1, 2)}
        return inputs(length), ours, [
            Peer("SDPA, bias kept from before", lambda q, k, v: attend(q, k, v, kept), modes=("",), **arranged),
            Peer("SDPA, bias made", lambda q, k, v: attend(q, k, v, hide(make_bias(length), causal)), modes=("compiled",),
                 **arranged),
            Peer("FlexAttention", flex, modes=("compiled",), **arranged),
        ]

    return make


def backward(kind, length, causal):
    def make(threads):
        module, make_bias, _, weight = biased(kind)
        shape = Shape(1, length, NH, H)
        kept = hide(make_bias(length), causal).contiguous()
        grad_out = torch.randn(1, length, NH, H)

        def ours(q, k, v):
            data = [torch.empty_like(q), q, k, v, torch.empty(1, NH, length)]
            grads = [torch.empty_like(q) for _ in range(3)]
            module.bound("attend", data, shape, causal, threads)()
            return module.bound("attend_backward", [*grads, grad_out], data, shape, causal, threads, result=grads)

        def peer(name, run, **others):
            learned = [] if weight is None else [weight]
            return Backward(name, run, lambda q, k, v: [q, k, v, *learned], grad_out.transpose(1, 2), arrange=head_first,
                            result=lambda grads: [g.transpose(1, 2) for g in grads[:3]], **others)

        peers = [peer("SDPA, bias made", lambda q, k, v: attend(q, k, v, hide(make_bias(length), causal)))]
        if weight is None:
            peers.append(peer("SDPA, bias kept from before", lambda q, k, v: attend(q, k, v, kept), modes=("",)))
        return inputs(length), ours, peers

    return make


LAYER = Shape(4, 512, 8, 256)
N_POSITIONS = 512


def layer():
    theirs = edspdf.RelativeAttention(
        size=LAYER.H, n_heads=LAYER.NH, position_embedding=torch.nn.Parameter(torch.randn(N_POSITIONS, LAYER.H))
    )
    ours = Module("relative_attention", LAYER.H, LAYER.NH, N_POSITIONS, **dict(theirs.named_parameters()))
    places = torch.arange(LAYER.L)
    relative = (places - places[:, None]).expand(LAYER.B, -1, -1).unsqueeze(-1).contiguous()
    mask = torch.ones(LAYER.B, LAYER.L, dtype=torch.bool)

    def run(x):
        return theirs(x, x, x, mask=mask, relative_positions=relative)

    return theirs, ours, relative, run


def layer_forward(threads):
    _, module, relative, run = layer()

    def ours(x):
        pooled, logits = torch.empty_like(x), torch.empty(LAYER.B, LAYER.L, LAYER.L, LAYER.NH)
        return module.bound("layer_forward", pooled, logits, x, relative, LAYER, threads, result=(pooled, logits))

    return (torch.randn(LAYER.B, LAYER.L, LAYER.H),), ours, [Peer("edspdf", run)]


def layer_backward(threads):
    theirs, module, relative, run = layer()
    grad = torch.randn(LAYER.B, LAYER.L, LAYER.H)
    weight = theirs.content_key_proj.weight

    def ours(x):
        pooled, logits = torch.empty_like(x), torch.empty(LAYER.B, LAYER.L, LAYER.L, LAYER.NH)
        module.bound("layer_forward", pooled, logits, x, relative, LAYER, threads)()
        return module.summing("content_key_proj.weight", weight, "layer_backward", torch.zeros_like(x), grad, logits, x,
                              relative, LAYER, threads)

    def wrt(x):  # the gradient of bias is 0, and not asked for
        return [weight, x] + [p for name, p in theirs.named_parameters() if name not in ("bias", "content_key_proj.weight")]

    return (torch.randn(LAYER.B, LAYER.L, LAYER.H),), ours, [
        Backward("edspdf", lambda x: run(x)[0], wrt, grad, result=lambda grads: grads[0])
    ]


rows = [
    *(
        Row("attention", f"{kind}, 8 heads of 64, L {length}, {'causal' if causal else 'all keys'}",
            forward(kind, length, causal))
        for kind in ("ALiBi", "T5")
        for length in (1024, 2048)
        for causal in (False, True)
    ),
    *(
        Row("attention", f"backward, {kind}, 8 heads of 64, L 1024, {'causal' if causal else 'all keys'}",
            backward(kind, 1024, causal))
        for kind in ("ALiBi", "T5")
        for causal in (False, True)
    ),
    Row("RelativeAttention", "4 × 512×512, size 256, 8 heads, all terms", layer_forward),
    Row("RelativeAttention", "backward, 4 × 512×512, size 256, 8 heads, all terms", layer_backward, 1e-3),
]
