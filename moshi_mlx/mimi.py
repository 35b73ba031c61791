"""Mimi, the codec: 24 kHz sound to codes, 12.5 frames per second, and back.

The streaming state is a value the caller holds; offline is one long step from a fresh state.
Computes in float32, the decoder in float16 where that is asked for. Knows nothing of files, sound
cards or the language model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy.typing as npt

from .arguments import finite, integers, on_host, samples, whole
from .cache import RingCache
from .config import MimiConfig
from .conv import Conv1d, ConvState, ConvTranspose1d
from .errors import ArgumentError, shown
from .seanet import SeanetDecoder, SeanetEncoder
from .state import MOST_FRAMES, SavedState, damage_refused, joined
from .threads import Exclusive, mlx_work
from .transformer import Transformer
from .vq import SplitResidualQuantizer

# Offline passes go through in blocks of this many frames, so that memory does not grow with length.
_BLOCK = 50
_MOST_STREAMS = 1024

Array = npt.NDArray[Any]


@dataclass
class _Half:
    """What one direction remembers."""

    seanet: list[ConvState]
    transformer: list[RingCache]
    resample: ConvState
    turn: Exclusive = field(default_factory=lambda: Exclusive("direction of a codec's state"))

    @property
    def parts(self) -> list[ConvState | RingCache]:
        return [*self.seanet, *self.transformer, self.resample]

    def arrays(self) -> list[mx.array]:
        return [array for part in self.parts for array in part.arrays()]

    def save(self) -> SavedState:
        arrays = {
            f"{i}.{j}": array
            for i, part in enumerate(self.parts)
            for j, array in enumerate(part.save())
        }
        return SavedState(arrays, {"offset": self.transformer[0].offset})

    def restore(self, saved: SavedState, stepped: "_Half", stride: int) -> None:
        """Continues where `save` was called.

        Args:
            saved: what it gave.
            stepped: one of the same codec that has all arrays.
            stride: positions per frame.

        Raises:
            ArgumentError: what was saved is of no such codec.
        """
        offset = whole("offset", saved.facts["offset"], 0, MOST_FRAMES)
        if offset % stride:
            raise ArgumentError(f"offset must be a multiple of {stride}, is {offset}")
        filled = [
            part.filled_at(offset) if isinstance(part, RingCache) else part.arrays() * bool(offset)
            for part in stepped.parts
        ]
        names = [[f"{i}.{j}" for j in range(len(like))] for i, like in enumerate(filled)]
        saved.check_like(dict(zip(chain(*names), chain(*filled), strict=True)))
        for part, its in zip(self.parts, names, strict=True):
            arrays = [saved.arrays[name] for name in its]
            if isinstance(part, RingCache):
                part.restore(offset, arrays)
            else:
                part.restore(arrays)


@dataclass
class MimiState:
    """A stream, or `batch` of them side by side: what encoder and decoder remember of it.

    The two directions don't touch each other's half. A fresh state is a new stream.
    """

    batch: int
    encoder: _Half
    decoder: _Half

    def arrays(self) -> list[mx.array]:
        """All arrays held: evaluate them with a step's result, so that no graph piles up."""
        return self.encoder.arrays() + self.decoder.arrays()

    def save(self) -> SavedState:
        """Both directions, evaluated, as a value that does not change when the stream continues."""
        return joined({"encoder": self.encoder.save(), "decoder": self.decoder.save()})


class Mimi(nn.Module):
    """The codec (Défossez et al. 2024, section 3.3).

    Steps wait for nothing: MLX begins with the first half of one while Python makes the graph of
    the other. A caller that streams evaluates every result together with the state,
    `mx.eval(codes, *state.arrays())`.

    Args:
        config: the architecture.
        num_codebooks: how many of the `config.quantizer.n_q` codebooks to use.
    """

    def __init__(self, config: MimiConfig, num_codebooks: int = 8) -> None:
        super().__init__()
        self.config = config
        self.num_codebooks = whole("num_codebooks", num_codebooks, 1, config.quantizer.n_q)
        dim, stride = config.seanet.dimension, config.stride
        self.encoder = SeanetEncoder(config.seanet)
        self.encoder_transformer = Transformer(config.transformer)
        self.quantizer = SplitResidualQuantizer(config.quantizer, num_codebooks)
        self.decoder_transformer = Transformer(config.decoding.transformer)
        self.decoder = SeanetDecoder(config.decoding.seanet)
        if stride > 1:
            self.downsample = Conv1d(
                dim, dim, 2 * stride, stride=stride, bias=False, padding="replicate"
            )
            self.upsample = ConvTranspose1d(
                dim, dim, 2 * stride, stride=stride, bias=False, depthwise=True
            )

    def set_types(self, encoder: mx.Dtype, decoder: mx.Dtype) -> None:
        """What both directions compute in; the quantizer stays in float32."""
        for part in (self.encoder, self.encoder_transformer, self.get("downsample")):
            if part is not None:
                part.set_dtype(encoder)
        for part in (self.decoder, self.decoder_transformer, self.get("upsample")):
            if part is not None:
                part.set_dtype(decoder)

    def drop_scales(self) -> None:
        """Goes without what only scales a layer's output: it is in the layer's weights."""
        for transformer in (self.encoder_transformer, self.decoder_transformer):
            for layer in transformer.layers:
                layer.drop_scales()

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.config.sample_rate

    @property
    def frame_size(self) -> int:
        """Samples per frame."""
        return self.config.frame_size

    @mlx_work
    def init_state(self, batch: int = 1) -> MimiState:
        """The state of `batch` streams of which nothing has been heard or said."""
        stride = self.config.stride
        encoder = _Half(
            self.encoder.init_state(), self.encoder_transformer.make_cache(stride), ConvState()
        )
        decoder = _Half(
            self.decoder.init_state(), self.decoder_transformer.make_cache(stride), ConvState()
        )
        return MimiState(whole("batch", batch, 1, _MOST_STREAMS), encoder, decoder)

    @mlx_work
    @damage_refused()
    def restore_state(self, saved: SavedState, batch: int = 1) -> MimiState:
        """A state, evaluated, that continues where `MimiState.save` was called.

        Raises:
            SessionError: what was saved is damaged, or of another codec or batch.
        """
        state, stepped = self.init_state(batch), self.init_state(batch)
        self.encode_later(mx.zeros((batch, self.config.channels, self.frame_size)), stepped)
        self.decode_later(mx.zeros((batch, self.num_codebooks, 1), mx.int32), stepped)
        stride = self.config.stride
        state.encoder.restore(saved.part("encoder"), stepped.encoder, stride)
        state.decoder.restore(saved.part("decoder"), stepped.decoder, stride)
        mx.eval(state.arrays())
        return state

    @mlx_work
    def encode_step(self, pcm: npt.ArrayLike | mx.array, state: MimiState) -> mx.array:
        """The next N frames of sound → their codes.

        Args:
            pcm: float [B, channels, N · frame_size], about ±1, or int16 or int32 samples; they are
                evaluated.
            state: the stream; is changed.

        Returns:
            int32 [B, num_codebooks, N].

        Raises:
            ArgumentError: the shape or type is wrong, or a sample not finite.
        """
        heard = samples(pcm)
        self._check_pcm(heard)
        finite("pcm", heard)  # what is not would stay in the state
        with _checked(state).encoder.turn.held():
            return self.encode_later(mx.array(heard), state)

    @mlx_work
    def encode_later(self, pcm: mx.array, state: MimiState) -> mx.array:
        """`encode_step` of floats that are known to be finite and need not be evaluated."""
        self._check_pcm(pcm)
        _check_batch(pcm, state)
        half = state.encoder
        x = self.encoder(pcm.astype(_type_of(self.encoder)).transpose(0, 2, 1), half.seanet)
        mx.async_eval(x)
        x = self.encoder_transformer(x, half.transformer)
        if "downsample" in self:
            x = self.downsample(x, half.resample)
        return self.quantizer.encode(x.astype(mx.float32))

    @mlx_work
    def decode_step(self, codes: npt.ArrayLike | mx.array, state: MimiState) -> mx.array:
        """The next N frames of codes → their sound.

        Args:
            codes: integers [B, k, N], 1 ≤ k ≤ num_codebooks, each from 0 to bins - 1; they are
                evaluated.
            state: the stream; is changed.

        Returns:
            float32 [B, channels, N · frame_size].

        Raises:
            ArgumentError: the shape is wrong, or a code out of range.
        """
        said = integers("codes", codes, 0, self.config.quantizer.bins - 1)
        with _checked(state).decoder.turn.held():
            return self.decode_later(mx.array(said), state)

    @mlx_work
    def decode_later(self, codes: mx.array, state: MimiState) -> mx.array:
        """`decode_step` of codes that are known to be in range and need not be evaluated."""
        self._check_codes(codes)
        _check_batch(codes, state)
        half = state.decoder
        x = self.quantizer.decode(codes.astype(mx.int32)).astype(_type_of(self.decoder))
        if "upsample" in self:
            x = self.upsample(x, half.resample)
        x = self.decoder_transformer(x, half.transformer)
        mx.async_eval(x)
        return self.decoder(x, half.seanet).transpose(0, 2, 1).astype(mx.float32)

    @mlx_work
    def encode(self, pcm: npt.ArrayLike | mx.array) -> mx.array:
        """Whole recordings, [B, channels, N · frame_size] → int32 [B, num_codebooks, N].

        Evaluates block by block, so memory doesn't grow with the length.

        Raises:
            ArgumentError: as `encode_step`.
        """
        heard = samples(pcm)
        self._check_pcm(heard)
        return self._offline(self.encode_step, heard, _BLOCK * self.frame_size)

    @mlx_work
    def decode(self, codes: npt.ArrayLike | mx.array) -> mx.array:
        """Whole recordings back, [B, k, N] → float32 [B, channels, N · frame_size]; as `encode`.

        Raises:
            ArgumentError: as `decode_step`.
        """
        said = on_host("codes", codes)
        self._check_codes(said)
        return self._offline(self.decode_step, said, _BLOCK)

    def _offline(
        self, step: Callable[[Array, MimiState], mx.array], x: Array, block: int
    ) -> mx.array:
        state = self.init_state(x.shape[0])
        blocks = []
        for start in range(0, x.shape[-1], block):
            blocks.append(step(x[..., start : start + block], state))
            mx.eval(blocks[-1], *state.arrays())
        return mx.concatenate(blocks, axis=-1)

    def _check_pcm(self, pcm: Array | mx.array) -> None:
        channels, size = self.config.channels, self.frame_size
        good = pcm.ndim == 3 and pcm.shape[1] == channels
        if not good or pcm.shape[-1] % size or not pcm.shape[-1]:
            raise ArgumentError(
                f"pcm must be [batch, {channels}, frames of {size} samples], is {list(pcm.shape)}"
            )

    def _check_codes(self, codes: Array | mx.array) -> None:
        good = codes.ndim == 3 and 1 <= codes.shape[1] <= self.num_codebooks
        if not good or not codes.shape[-1]:
            raise ArgumentError(
                f"codes must be [batch, 1 to {self.num_codebooks} codebooks, frames], "
                f"are {list(codes.shape)}"
            )


def _type_of(seanet: SeanetEncoder | SeanetDecoder) -> mx.Dtype:
    return next(layer for layer in seanet.model if isinstance(layer, Conv1d)).weight.dtype


def _check_batch(x: mx.array, state: MimiState) -> None:
    if x.shape[0] != _checked(state).batch:
        raise ArgumentError(f"the state is of a batch of {state.batch}, this is {x.shape[0]}")


def _checked(state: MimiState) -> MimiState:
    if not isinstance(state, MimiState):
        raise ArgumentError(f"state must be a MimiState, is {shown(state)}")
    return state
