# SPDX-License-Identifier: MIT
"""Rows of what is added to logits: a bias that is made, and one that is added to a mask in place."""

import torch
from torch import nn
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from measure import Backward, Peer, Row
from ours import Module, Shape, bound
from packages import bio, xt, zeta_alibi, zeta_dynamic, zeta_t5

HEADS = 12


def modes(length):
    """At L 4096 only compiled: the others, far behind at L 1024, would take most of the time."""
    return ("", "compiled") if length <= 1024 else ("compiled",)


notes = [
    "ALiBi has nothing to learn in its usual form: its backward pass is empty here and there, and not timed.",
    "bio-attention's TransformerXL makes L × L × dim projections, 2 GB at L 1024: it is timed at L 256. Hugging Face has",
    "removed Transformer-XL; the paper's formula in torch, with one projection a distance and a shift, stands for it.",
    "FlexAttention is timed forward only: its backward pass did not compile for the CPU here.",
    "DisentangledBias has no peer that is a module; RelativeAttention, edspdf's layer, has the same terms.",
]


def makes_bias(module, length, threads):
    """bias(L, L), a new tensor a call; its first is copied to be compared."""

    def ours():
        result = torch.empty(HEADS, length, length)
        module.bound("bias", length, threads, result)()
        return module.bound("bias", length, threads, None, result=result)

    return ours


def adds_bias(module, heads, length, threads):
    shape = Shape(1, length, heads, 0)
    return lambda mask: module.bound("mod_mask", mask, None, shape, threads, result=mask)


def mask_of(heads, length):
    return (torch.randn(1, heads, length, length),)


def tokens_of(heads, length):
    """For packages that take lengths from q and k."""
    return torch.zeros(1, length, heads, 1)


def x_alibi(made, length):
    """As x-transformers makes it the first time; then it keeps it."""
    return made.forward_custom_pos(torch.arange(length))


def alibi_bias(length):
    def make(threads):
        b, x, q = bio.ALiBi(HEADS), xt.AlibiPositionalBias(HEADS), tokens_of(HEADS, length)
        return (), makes_bias(Module("alibi", HEADS), length, threads), [
            Peer("bio-attention", lambda: b.mod_mask(None, q, q, q), result=lambda out: out[0], modes=modes(length)),
            Peer("x-transformers", lambda: x_alibi(x, length), modes=modes(length)),
            Peer("Hugging Face Bloom", lambda: build_alibi_tensor(torch.ones(1, length), HEADS, torch.float), modes=("",)),
            Peer("zetascale", lambda: zeta_alibi.AlibiPositionalBias(HEADS, HEADS)(length, length), modes=("",)),
        ]

    return make


def alibi_mask(length):
    def make(threads):
        b, x, q = bio.ALiBi(HEADS), xt.AlibiPositionalBias(HEADS), tokens_of(HEADS, length)
        kept = x_alibi(x, length)
        return mask_of(HEADS, length), adds_bias(Module("alibi", HEADS), HEADS, length, threads), [
            Peer("bio-attention", lambda mask: b.mod_mask(mask, q, q, q), modes=modes(length)),
            Peer("x-transformers, mask +=", lambda mask: mask.add_(x_alibi(x, length)), modes=modes(length)),
            Peer("torch, mask += a bias kept from before", lambda mask: mask.add_(kept)),
        ]

    return make


def t5_modules(heads=HEADS):
    """x-transformers', zetascale's and Hugging Face's, with one weight, as functions of the length; and the weight."""
    weight = nn.Embedding(32, heads)
    x = xt.RelativePositionBias(1.0, heads=heads)
    z = zeta_t5.RelativePositionBias(num_heads=heads)
    config = T5Config(d_model=heads * 64, d_kv=64, num_heads=heads)
    h = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    x.relative_attention_bias = z.relative_attention_bias = h.relative_attention_bias = weight
    return {
        "x-transformers": lambda length: x(length, length),
        "zetascale": lambda length: z.compute_bias(length, length)[0],
        "Hugging Face T5": lambda length: h.compute_bias(length, length)[0],
    }, weight.weight


def t5(weight):
    return Module("relative_position_bias", weight.shape[1], **{"relative_attention_bias.weight": weight})


def t5_bias(length):
    def make(threads):
        made, weight = t5_modules()
        return (), makes_bias(t5(weight), length, threads), [
            Peer(name, lambda run=run: run(length), modes=modes(length)) for name, run in made.items()
        ]

    return make


def t5_mask(length):
    def make(threads):
        made, weight = t5_modules()
        kept = made["zetascale"](length).contiguous()
        return mask_of(HEADS, length), adds_bias(t5(weight), HEADS, length, threads), [
            Peer(f"{name}, mask +=", lambda mask, run=run: mask.add_(run(length)), modes=modes(length))
            for name, run in made.items()
        ] + [Peer("torch, mask += a bias kept from before", lambda mask: mask.add_(kept))]

    return make


def t5_backward(length):
    def make(threads):
        made, weight = t5_modules()
        (grad,) = mask_of(HEADS, length)
        module = t5(weight)
        shape = Shape(1, length, HEADS, 0)

        def ours(_):
            return module.summing("relative_attention_bias.weight", weight, "mod_mask_backward", grad, None, None, shape,
                                  threads)

        return mask_of(HEADS, length), ours, [
            Backward(name, lambda mask, run=run: mask + run(length), lambda _: [weight], grad)
            for name, run in made.items()
        ]

    return make


def t5_buckets(threads):
    relative = torch.arange(1 << 20).mul_(2654435761).remainder_(1024).sub_(512)

    def ours(relative):
        buckets = torch.empty_like(relative)
        return bound("t5_buckets", relative, buckets, relative.numel(), result=buckets)

    return (relative,), ours, [
        Peer("x-transformers", lambda r: xt.RelativePositionBias._relative_position_bucket(r, causal=False)),
        Peer("zetascale", lambda r: zeta_t5.RelativePositionBias._relative_position_bucket(r)),
        Peer("Hugging Face T5", lambda r: T5Attention._relative_position_bucket(r)),
    ]


def dynamic(made, heads, dim, depth, rename, negate_last=False):
    """Ours with the weights of a package's MLP, of which `rename` has the names."""
    state = dict(made.named_parameters())
    ours = {name: state[theirs] for name, theirs in rename.items()}
    if negate_last:
        ours |= {f"mlp.{depth}.{p}": -ours[f"mlp.{depth}.{p}"] for p in ("weight", "bias")}
        ours |= {f"mlp.{depth - 1}.1.weight": torch.eye(dim), f"mlp.{depth - 1}.1.bias": torch.zeros(dim)}
    return Module("dynamic_position_bias", dim, heads, depth, **ours)


def dynamic_bio(threads, heads=8, length=1024, dim=64):
    b, q = bio.DPB(dim, heads, depth=2), tokens_of(heads, length)
    module = dynamic(b, heads, dim, 2, {name: name for name, _ in b.named_parameters()})
    return mask_of(heads, length), adds_bias(module, heads, length, threads), [
        Peer("bio-attention", lambda mask: b.mod_mask(mask, q, q, q))
    ]


def x_dynamic(heads, dim):
    """x-transformers', and ours: which needs a further hidden layer, the identity, for the Swish before the last."""
    x = xt.DynamicPositionBias(dim, heads=heads, depth=2)
    names = {f"mlp.{i}.{min(i, 1)}.{p}": f"mlp.{i}.0.{p}" for i in range(2) for p in ("weight", "bias")}
    names |= {f"mlp.3.{p}": f"mlp.2.{p}" for p in ("weight", "bias")}
    return x, dynamic(x, heads, dim, 3, names, negate_last=True)


def dynamic_x(threads, heads=8, length=1024, dim=64):
    x, module = x_dynamic(heads, dim)
    z = zeta_dynamic.DynamicPositionBias(dim, heads)
    for i, layer in enumerate((0, 2, 4)):
        z.mlp[layer] = x.mlp[i][0] if i < 2 else x.mlp[i]
    return mask_of(heads, length), adds_bias(module, heads, length, threads), [
        Peer("x-transformers, mask +=", lambda mask: mask.add_(x(length, length))),
        Peer("zetascale, mask +=", lambda mask: mask.add_(z(length, length)), modes=("",)),
    ]


def dynamic_backward(threads, heads=8, length=1024, dim=64):
    x, module = x_dynamic(heads, dim)
    (grad,) = mask_of(heads, length)
    weight = x.mlp[0][0].weight
    shape = Shape(1, length, heads, 0)

    def ours(_):
        return module.summing("mlp.0.0.weight", weight, "mod_mask_backward", grad, None, None, shape, threads)

    # All gradients, of which the first layer's is compared.
    return mask_of(heads, length), ours, [
        Backward("x-transformers", lambda mask: mask + x(length, length), lambda _: [weight, *list(x.parameters())[1:]],
                 grad, result=lambda grads: grads[0])
    ]


XL_HEADS, XL_H = 8, 64


def xl(made, bio_form):
    return Module("transformer_xl", XL_HEADS * XL_H, XL_HEADS, bio_form, **dict(made.named_parameters()))


def xl_mask(module, shape, threads):
    return lambda mask, q: module.bound("mod_mask", mask, q, shape, threads, result=mask)


def xl_inputs(length):
    return *mask_of(XL_HEADS, length), torch.randn(1, length, XL_HEADS, XL_H)


def xl_bio(length):
    def make(threads):
        b = bio.XL(XL_HEADS * XL_H, XL_HEADS)
        shape = Shape(1, length, XL_HEADS, XL_H)
        return xl_inputs(length), xl_mask(xl(b, True), shape, threads), [
            Peer("bio-attention", lambda mask, q: b.mod_mask(mask, q, q, q))
        ]

    return make


def xl_paper(mask, q, made):
    """The paper's term for q with bias_r_w added: one projection a distance, a product, and a shift of its rows."""
    length, dim = q.shape[1], XL_HEADS * XL_H
    distances = torch.arange(length - 1, -length, -1)  # query minus key; column 0 is that of the last query
    angles = distances[:, None] * made.inv_freq
    sinusoid = torch.stack((angles.sin(), angles.cos()), dim=-1).view(-1, dim)
    r = made.embed_lin(sinusoid).view(-1, XL_HEADS, XL_H)
    terms = (q - made.bias_r_w + made.bias_r_r).transpose(1, 2) @ r.permute(1, 2, 0)  # (B, NH, L, 2L - 1)
    # Row i begins L - 1 - i columns to the right: rows one number shorter, read from the first row's beginning on.
    flat = terms.flatten(-2)[..., length - 1 : length - 1 + length * (2 * length - 2)]
    shifted = nn.functional.pad(flat, (0, max(0, length * (2 * length - 2) - flat.shape[-1])))
    shifted = shifted.view(*terms.shape[:-1], 2 * length - 2)[..., :length]
    return mask + shifted * XL_H**-0.5


def xl_standin(length):
    def make(threads):
        b = bio.XL(XL_HEADS * XL_H, XL_HEADS)
        shape = Shape(1, length, XL_HEADS, XL_H)
        return xl_inputs(length), xl_mask(xl(b, False), shape, threads), [
            Peer("torch, the paper's formula", lambda mask, q: xl_paper(mask, q, b))
        ]

    return make


def xl_backward(length):
    def make(threads):
        b = bio.XL(XL_HEADS * XL_H, XL_HEADS)
        module, shape = xl(b, False), Shape(1, length, XL_HEADS, XL_H)
        mask, q = xl_inputs(length)
        grad = torch.randn_like(mask)
        weight = b.embed_lin.weight

        def ours(_, q):
            return module.summing("embed_lin.weight", weight, "mod_mask_backward", grad, torch.zeros_like(q), q, shape,
                                  threads)

        # Gradients of q and of all parameters, of which the largest is compared.
        return (mask, q), ours, [
            Backward("torch, the paper's formula", lambda mask, q: xl_paper(mask, q, b),
                     lambda mask, q: [weight, q, b.embed_lin.bias, b.bias_r_r, b.bias_r_w], grad,
                     result=lambda grads: grads[0])
        ]

    return make


lengths = (256, 1024, 4096)
dpb = "L 1024, 8 heads, dim 64, depth 2"
rows = [
    *(Row("ALiBi", f"bias(L, L), 12 heads, L {length}", alibi_bias(length)) for length in lengths),
    *(Row("ALiBi", f"mask += bias, 12 heads, L {length}", alibi_mask(length)) for length in lengths),
    *(Row("RelativePositionBias", f"bias(L, L), 12 heads, L {length}", t5_bias(length)) for length in lengths),
    *(Row("RelativePositionBias", f"mask += bias, 12 heads, L {length}", t5_mask(length)) for length in lengths),
    Row("RelativePositionBias", "backward of the mask, 12 heads, L 1024", t5_backward(1024)),
    Row("RelativePositionBias", "buckets of 2^20 integers within ±512, ours on one thread", t5_buckets, 0),
    Row("DynamicPositionBias", f"mask -= MLP, {dpb}, as in bio-attention", dynamic_bio),
    Row("DynamicPositionBias", f"mask += MLP, {dpb}, as in x-transformers", dynamic_x),
    Row("DynamicPositionBias", f"backward, {dpb}, as in x-transformers", dynamic_backward),
    Row("TransformerXL", "mask += bias, dim 512, 8 heads, L 256, as in bio-attention", xl_bio(256), 1e-3),
    Row("TransformerXL", "mask += bias, dim 512, 8 heads, L 1024, the paper's", xl_standin(1024), 1e-3),
    Row("TransformerXL", "backward, dim 512, 8 heads, L 1024, the paper's", xl_backward(1024), 1e-3),
]
