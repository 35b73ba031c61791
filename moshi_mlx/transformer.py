"""One causal transformer for the temporal model, the depth model and Mimi.

Knows attention, rotations, norms and feed-forward layers; what is remembered between steps is in
the caches that are given to it. Knows nothing of tokens or sound.
"""

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .backend import on_gpu
from .cache import Cache, FrameCache, KeysValues, Quantized, RingCache
from .config import Gating, Norm, TransformerConfig

# Keys and values of the other side of a cross-attention, each [B, H, S, D].
CrossKv = tuple[mx.array, mx.array]
# Queries [B, H, T, D], keys and values [2, B, KV, T, D].
Heads = tuple[mx.array, mx.array]
# For each of [B, T, (H + 2 KV) / KV] the position that it is rotated by, flat; None: no rotation.
Turns = mx.array | None

# An offline pass goes through in blocks of at least this many positions.
_LEAST_BLOCK = 256

_ACTIVATIONS: dict[Gating, Callable[[mx.array], mx.array]] = {
    "silu": nn.silu,
    "gelu": nn.gelu,
    "relu": nn.relu,
    "sigmoid": mx.sigmoid,
    "tanh": mx.tanh,
    "elu": nn.elu,
    "leaky_relu": nn.leaky_relu,
    "mish": nn.mish,
    "softsign": nn.softsign,
    "identity": lambda x: x,
}


def make_norm(kind: Norm, dim: int) -> nn.Module:
    """The published norms; MLX's reduce in float32 whatever the type, so `_f32` is the eps."""
    eps = 1e-8 if kind.endswith("_f32") else 1e-5
    return RmsNorm(dim, eps) if kind.startswith("rms") else nn.LayerNorm(dim, eps)


class RmsNorm(nn.RMSNorm):
    """MLX has one kernel of it for a GPU, and seven primitives for the CPU: there, fused to three.

    The numbers are the same.
    """

    def __call__(self, x: mx.array) -> mx.array:
        if on_gpu() or not x.dtype == self.weight.dtype == mx.float32:
            plain: mx.array = super().__call__(x)
            return plain
        squares = mx.sum(mx.square(x), axis=-1, keepdims=True)
        # Numbers as arrays, so that one fused kernel serves norms of every width.
        share, eps = mx.array(1 / x.shape[-1]), mx.array(self.eps)
        scaled: mx.array = _rms_scaled(x, squares, self.weight, share, eps)
        return scaled


@partial(mx.compile, shapeless=True)
def _rms_scaled(
    x: mx.array, squares: mx.array, weight: mx.array, share: mx.array, eps: mx.array
) -> mx.array:
    return weight * (x * mx.rsqrt(squares * share + eps))


def sinusoids(offset: int, length: int, dim: int, max_period: float) -> mx.array:
    """Sinusoidal positions, float32 [length, dim]: cosines then sines."""
    half = dim // 2
    exponents = mx.arange(half, dtype=mx.float32) / (half - 1)
    positions = mx.arange(offset, offset + length, dtype=mx.float32)[:, None]
    phase = positions / mx.power(max_period, exponents)
    return mx.concatenate([mx.cos(phase), mx.sin(phase)], axis=-1)


class Attention(nn.Module):
    """Self-attention with a fused projection, grouped keys and rotary positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self._config = config
        kv_dim = config.num_kv_heads * config.head_dim
        self.in_proj = nn.Linear(config.dim, config.dim + 2 * kv_dim, bias=False)
        self.out_proj = nn.Linear(config.dim, config.dim, bias=False)

    def heads(self, qkv: mx.array, turns: Turns) -> Heads:
        """[B, T, (H + 2 KV) D] → queries [B, H, T, D], keys and values [2, B, KV, T, D].

        Args:
            qkv: the projection's output.
            turns: how far to rotate, of `Transformer.turns`; None: not at all.
        """
        c = self._config
        if turns is not None:
            # Values turn by no angle, which changes nothing: one launch in place of three.
            turned = mx.fast.rope(
                qkv.reshape(-1, c.num_kv_heads, 1, c.head_dim),
                c.head_dim,
                traditional=c.positions != "rope_concat",
                base=c.max_period,
                scale=1.0,
                offset=turns,
            )
            qkv = turned.reshape(qkv.shape)
        batch, length, _ = qkv.shape
        heads = qkv.reshape(batch, length, -1, c.head_dim)
        both = heads[:, :, c.num_heads :].reshape(batch, length, 2, -1, c.head_dim)
        return heads[:, :, : c.num_heads].transpose(0, 2, 1, 3), both.transpose(2, 0, 3, 1, 4)

    def mix_heads(self, heads: Heads, cache: Cache, mask: mx.array | None) -> mx.array:
        """Attention to what is in `cache` and to these: [B, T, dim]."""
        c = self._config
        q, both = heads
        batch, _, length, _ = q.shape
        held = cache.update(both)
        if isinstance(cache, FrameCache) and cache.offset == 1 and c.num_kv_heads == c.num_heads:
            y = both[1, ...]  # one key has all the attention
        else:
            y = attend(q, held, mask)
        return y.transpose(0, 2, 1, 3).reshape(batch, length, c.dim)


def attend(q: mx.array, held: KeysValues, mask: mx.array | None = None) -> mx.array:
    """Attention of queries [B, H, T, D] to keys and values: [B, H, T, D]."""
    scale = q.shape[-1] ** -0.5
    if isinstance(held, Quantized):
        return _attend_quantized(q * scale, held, mask)
    return mx.fast.scaled_dot_product_attention(q, *held, scale=scale, mask=mask)


def _attend_quantized(q: mx.array, held: Quantized, mask: mx.array | None) -> mx.array:
    """Multiplies by what is quantized, so that it is never there in full.

    Queries that share a head of keys go through as the rows of one matrix.
    """
    batch, _, length, dim = q.shape
    kv_heads = held.packed.shape[2]
    if held.width > dim:
        q = mx.pad(q, [(0, 0)] * 3 + [(0, held.width - dim)])
    scores = held.scores(q.reshape(batch, kv_heads, -1, held.width))
    if mask is not None:
        # The mask's rows are the T queries; each is there once per head.
        split = scores.reshape(batch, kv_heads, -1, *mask.shape)
        scores = mx.where(mask, split, -mx.inf).reshape(scores.shape)
    y = held.mixed(mx.softmax(scores, axis=-1, precise=True))
    return y[..., :dim].reshape(batch, -1, length, dim)


class CrossAttention(Attention):
    """Attention to a sequence that doesn't change; `keys_values` prepares it once."""

    def keys_values(self, source: mx.array) -> CrossKv:
        """[B, S, dim] → keys and values."""
        k, v = self.heads(self.in_proj(source), None)[1]
        return k, v

    def attend(self, x: mx.array, source: CrossKv) -> mx.array:
        q, _ = self.heads(self.in_proj(x), None)
        y = attend(q, source)
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(x.shape))


class GatedMLP(nn.Module):
    """linear_out(act(a) · b) with a, b the halves of linear_in(x)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = config.gated_hidden
        self._activation = _ACTIVATIONS[config.gating]
        self.linear_in = nn.Linear(config.dim, 2 * hidden, bias=False)
        self.linear_out = nn.Linear(hidden, config.dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        a, b = mx.split(self.linear_in(x), 2, axis=-1)
        return self.linear_out(self._activation(a) * b)


class LayerScale(nn.Module):
    """A learned scale per channel on a residual branch (Touvron et al. 2021)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = mx.ones((dim,))

    def __call__(self, x: mx.array) -> mx.array:
        return self.scale * x


class TransformerLayer(nn.Module):
    """Pre-norm residual layer: self-attention, cross-attention where there is one, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config.norm, config.dim)
        self.self_attn = Attention(config)
        self.norm2 = make_norm(config.norm, config.dim)
        self._gated = config.gating != "none"
        self._scaled = config.layer_scale
        if self._gated:
            self.gating = GatedMLP(config)
        else:
            self.linear1 = nn.Linear(config.dim, config.feedforward, bias=False)
            self.linear2 = nn.Linear(config.feedforward, config.dim, bias=False)
        if config.layer_scale:
            self.layer_scale_1 = LayerScale(config.dim)
            self.layer_scale_2 = LayerScale(config.dim)
        if config.cross_attention:
            self.norm_cross = nn.LayerNorm(config.dim, 1e-5)
            self.cross_attention = CrossAttention(config)
            if config.layer_scale:
                self.layer_scale_cross = LayerScale(config.dim)

    def __call__(
        self,
        x: mx.array,
        cache: Cache,
        turns: Turns,
        mask: mx.array | None,
        cross: CrossKv | None = None,
    ) -> mx.array:
        return self.finish(x, self.self_attn.mix_heads(self.begin(x, turns), cache, mask), cross)

    def drop_scales(self) -> None:
        """Goes without the scales of its residual branches: they are in the weights before them."""
        if self._scaled:
            self._scaled = False
            del self.layer_scale_1, self.layer_scale_2

    def begin(self, x: mx.array, turns: Turns) -> Heads:
        """Before the attention: its heads for [B, T, dim]."""
        return self.self_attn.heads(self.self_attn.in_proj(self.norm1(x)), turns)

    def finish(self, x: mx.array, attended: mx.array, cross: CrossKv | None = None) -> mx.array:
        """After the attention: all the rest of the layer."""
        x = self.add_attended(x, self.self_attn.out_proj(attended))
        if cross is not None:
            update = self.cross_attention.attend(self.norm_cross(x), cross)
            x = x + (self.layer_scale_cross(update) if self._scaled else update)
        return self.add_fed_forward(x)

    def add_attended(self, x: mx.array, update: mx.array) -> mx.array:
        """The first residual branch's end."""
        return x + (self.layer_scale_1(update) if self._scaled else update)

    def add_fed_forward(self, x: mx.array) -> mx.array:
        """The last residual branch."""
        update = self._feed_forward(self.norm2(x))
        return x + (self.layer_scale_2(update) if self._scaled else update)

    def _feed_forward(self, x: mx.array) -> mx.array:
        if self._gated:
            return self.gating(x)
        return self.linear2(nn.gelu(self.linear1(x)))


class Transformer(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = [TransformerLayer(config) for _ in range(config.num_layers)]

    def make_cache(self, lookahead: int = 1, bits: int | None = None) -> list[RingCache]:
        """Empty caches for a stream that brings up to `lookahead` positions at a time.

        Keys and values are quantized to `bits` bits; see `RingCache`.
        """
        context = self.config.context
        if context is None:
            raise ValueError("a transformer without a context has no bounded cache")
        return [RingCache(context, lookahead, bits=bits) for _ in self.layers]

    def turns(self, offset: int, batch: int, length: int = 1) -> Turns:
        """What the layers rotate `length` positions from `offset` on by."""
        c = self.config
        if "rope" not in c.positions:
            return None
        parts = [1] * (c.num_heads // c.num_kv_heads + 1) + [0]
        turns = np.outer(np.arange(offset, offset + length), parts)
        return mx.array(np.tile(turns.reshape(-1), batch).astype(np.int32))

    def turned(self, keys: mx.array, positions: int) -> mx.array:
        """Keys [B, H, n, D] as they would be that many positions later."""
        c = self.config
        if "rope" not in c.positions:
            return keys
        turned = mx.fast.rope(
            keys.reshape(-1, 1, c.head_dim),
            c.head_dim,
            traditional=c.positions != "rope_concat",
            base=c.max_period,
            scale=1.0,
            offset=positions,
        )
        return turned.reshape(keys.shape)

    def cross_keys_values(self, source: mx.array) -> list[CrossKv]:
        """What every layer's cross-attention attends: prepared once for [B, S, dim]."""
        return [layer.cross_attention.keys_values(source) for layer in self.layers]

    def __call__(
        self,
        x: mx.array,
        cache: Sequence[Cache] | None = None,
        cross: Sequence[CrossKv] | None = None,
    ) -> mx.array:
        """[B, T, dim] → [B, T, dim], the T positions that follow those in `cache`.

        A long pass goes block by block, so its memory grows with T · context, not T².
        """
        length = x.shape[1]
        if cache is None:
            context = self.config.context or max(length, 1)
            cache = [RingCache(context) for _ in self.layers]
        block = max(self.config.context or length, _LEAST_BLOCK)
        if length <= block:
            return self._block(x, cache, cross)
        starts = range(0, length, block)
        blocks = [self._block(x[:, i : i + block], cache, cross) for i in starts]
        return mx.concatenate(blocks, axis=1)

    def _block(
        self, x: mx.array, cache: Sequence[Cache], cross: Sequence[CrossKv] | None
    ) -> mx.array:
        c = self.config
        offset, length = cache[0].offset, x.shape[1]
        mask = cache[0].mask(length)
        if c.positions in ("sin", "sin_rope"):
            x = x + sinusoids(offset, length, c.dim, c.max_period).astype(x.dtype)
        turns = self.turns(offset, x.shape[0], length)
        for i, layer in enumerate(self.layers):
            x = layer(x, cache[i], turns, mask, None if cross is None else cross[i])
        return x


def lockstep(transformers: Sequence[Transformer], xs: Sequence[mx.array]) -> list[mx.array]:
    """One position through each transformer, all attending one sequence: position k is of the k-th.

    The same as stepping through them one after the other with one cache, layer by layer instead of
    position by position.

    Args:
        transformers: alike but for their weights and feed-forward widths, one per position.
        xs: the positions, each [N, dim].
    """
    config, length = transformers[0].config, len(xs)
    if config.positions in ("sin", "sin_rope"):
        rows = sinusoids(0, length, config.dim, config.max_period).astype(xs[0].dtype)
        xs = [x + row for x, row in zip(xs, rows, strict=True)]
    turns = transformers[0].turns(0, xs[0].shape[0], length)
    for layers in zip(*(t.layers for t in transformers), strict=True):
        each = list(zip(layers, xs, strict=True))
        cache = RingCache(length)
        qkv = mx.stack([layer.self_attn.in_proj(layer.norm1(x)) for layer, x in each], axis=1)
        attention = layers[0].self_attn
        mixed = attention.mix_heads(attention.heads(qkv, turns), cache, cache.mask(length))
        xs = [
            layer.add_attended(x, layer.self_attn.out_proj(mixed[:, k]))
            for k, (layer, x) in enumerate(each)
        ]
        xs = [layer.add_fed_forward(x) for layer, x in zip(layers, xs, strict=True)]
    return list(xs)
