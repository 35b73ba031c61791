"""One small protocol for the codec of a session, and the two codecs that fill it.

One stream, NumPy in and out: sound comes from and goes to a sound card, and codes go through the
host anyway. `MlxCodec` is our Mimi; `RustCodec` is rustymimi, which runs on the CPU beside the
model and knows the published architecture only. Knows nothing of the language model.
"""

import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .arguments import finite, integers, samples
from .arrays import Codes, Pcm
from .config import MimiConfig
from .errors import ArgumentError, CheckpointError, MoshiError, SessionError
from .files import cache_folder, write_json
from .mimi import Mimi, MimiState
from .state import SavedState
from .threads import mlx_work
from .weights_mimi import check_mimi, load_mimi

State = TypeVar("State")
CodecName = Literal["auto", "mlx", "rust"]

_CHOICES = "codec.json"  # in the cache folder
_TIMED_FRAMES = 2
# Of our Mimi's time, what rustymimi may take to be chosen: near ties always go the same way.
_CLEARLY_FASTER = 0.9


class Codec(Protocol[State]):
    """Sound to codes and back, frame by frame; every frame gives its codes at once.

    One state serves both directions, which don't touch each other in it; a fresh one is a new
    stream. Steps block until their result is there.
    """

    @property
    def name(self) -> str:
        """As it is asked for."""

    @property
    def sample_rate(self) -> int:
        """Samples per second."""

    @property
    def frame_size(self) -> int:
        """Samples per frame."""

    @property
    def num_codebooks(self) -> int:
        """Codes per frame."""

    def init_state(self) -> State:
        """A stream of which nothing has been heard or said."""

    def save_state(self, state: State) -> SavedState:
        """The stream as a value. Raises SessionError if this codec cannot give it."""

    def restore_state(self, saved: SavedState) -> State:
        """A stream that continues where `save_state` was called. Raises SessionError likewise."""

    def encode_step(self, pcm: npt.ArrayLike, state: State) -> Codes:
        """float32 [N · frame_size] → int32 [num_codebooks, N]; ArgumentError for others."""

    def decode_step(self, codes: npt.ArrayLike, state: State) -> Pcm:
        """int32 [num_codebooks, N] → float32 [N · frame_size].

        Raises:
            ArgumentError: another shape, or a code out of range (−1, −2).
        """


class MlxCodec:
    """Our Mimi. A step evaluates its result and the state, and nothing else does.

    It decodes the first codebooks alone, too.
    """

    name = "mlx"

    def __init__(self, mimi: Mimi) -> None:
        self.mimi = mimi
        self.sample_rate = mimi.sample_rate
        self.frame_size = mimi.frame_size
        self.num_codebooks = mimi.num_codebooks

    @mlx_work
    def init_state(self) -> MimiState:
        state = self.mimi.init_state()
        mx.eval(state.arrays())  # what is lazy belongs to this thread; the steps may run on another
        return state

    def save_state(self, state: MimiState) -> SavedState:
        return state.save()

    def restore_state(self, saved: SavedState) -> MimiState:
        return self.mimi.restore_state(saved)

    @mlx_work
    def encode_step(self, pcm: npt.ArrayLike, state: MimiState) -> Codes:
        with state.encoder.turn.held():
            codes = self.encode_later(pcm, state)
            mx.eval(codes, *state.encoder.arrays())
            return np.array(codes)

    def encode_later(self, pcm: npt.ArrayLike, state: MimiState) -> mx.array:
        """`encode_step` with nothing evaluated: int32 [num_codebooks, N]."""
        checked = _checked_pcm(pcm, self.frame_size)
        return self.mimi.encode_later(mx.array(checked)[None, None], state).squeeze(0)

    def decode_later(self, codes: mx.array, state: MimiState) -> mx.array:
        """`decode_step` with nothing evaluated or checked: float32 [N · frame_size]."""
        return self.mimi.decode_later(codes[None], state)[0, 0]

    @mlx_work
    def decode_step(self, codes: npt.ArrayLike, state: MimiState) -> Pcm:
        bins = self.mimi.config.quantizer.bins
        checked = _checked_codes(codes, self.num_codebooks, bins, least=1)
        with state.decoder.turn.held():
            pcm = self.decode_later(mx.array(checked), state)
            mx.eval(pcm, *state.decoder.arrays())
            return np.array(pcm)


class RustCodec:
    """rustymimi. Its stream lives inside its tokenizer, so every state is a separate tokenizer.

    A state thus holds all weights (385 MB). One that was used never becomes new again: after its
    own `reset` (0.4.1) the first codes differ. Steps release the GIL. After 125 frames its
    attention sees slightly other keys than the definition says (conformance: sound off by 0.02).

    Raises:
        MoshiError: rustymimi is not installed, or the Mimi is not of the published size.
        CheckpointError: rustymimi cannot read the file.
    """

    name = "rust"

    def __init__(
        self, path: str | Path, num_codebooks: int = 8, config: MimiConfig | None = None
    ) -> None:
        if reason := _rust_impossible(config):
            raise MoshiError(f"codec 'rust' cannot be used: {reason}; use 'mlx' or 'auto'")
        published = MimiConfig()
        self.sample_rate = published.sample_rate
        self.frame_size = published.frame_size
        self.num_codebooks = num_codebooks
        self._path = path
        self._bins = published.quantizer.bins
        self._spare: Any = self._tokenizer()  # a broken file is found now, not at the first frame

    def init_state(self) -> Any:
        state, self._spare = self._spare or self._tokenizer(), None
        return state

    def save_state(self, state: Any) -> SavedState:
        raise self._no_states()

    def restore_state(self, saved: SavedState) -> Any:
        raise self._no_states()

    def _no_states(self) -> SessionError:
        return SessionError(
            "rustymimi keeps its stream to itself, so this conversation cannot be saved or "
            'resumed: load the model with codec="mlx"'
        )

    def encode_step(self, pcm: npt.ArrayLike, state: Any) -> Codes:
        checked = _checked_pcm(pcm, self.frame_size)
        # None would mean less than a frame, which the check above rules out.
        return np.asarray(state.encode_step(checked[None, None])[0], dtype=np.int32)

    def decode_step(self, codes: npt.ArrayLike, state: Any) -> Pcm:
        checked = _checked_codes(codes, self.num_codebooks, self._bins)
        return np.asarray(state.decode_step(checked[None].astype(np.uint32))[0, 0])

    def _tokenizer(self) -> Any:
        import rustymimi

        try:
            return rustymimi.Tokenizer(str(self._path), num_codebooks=self.num_codebooks)
        except Exception as error:  # whatever it raises carries a Rust backtrace behind line one
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"{self._path}: rustymimi cannot read it: {reason}") from error


def _rust_impossible(config: MimiConfig | None) -> str | None:
    """Why rustymimi cannot serve, or None."""
    try:
        import rustymimi  # noqa: F401
    except ImportError:
        return "rustymimi is not installed (it has no wheel for this Python or platform)"
    if config is not None and config != MimiConfig():
        return "this Mimi is not of the published size, which is all that rustymimi knows"
    return None


def _checked_pcm(pcm: npt.ArrayLike, frame_size: int) -> Pcm:
    checked = samples(pcm)
    if checked.ndim != 1 or not checked.size or checked.size % frame_size:
        raise ArgumentError(f"pcm must be [frames of {frame_size} samples], is {checked.shape}")
    finite("pcm", checked)  # what is not would stay in the state
    return np.ascontiguousarray(checked)


def _checked_codes(
    codes: npt.ArrayLike, num_codebooks: int, bins: int, least: int | None = None
) -> Codes:
    """At least `least` of the codebooks; None: all."""
    checked = integers("codes", codes, 0, bins - 1)
    first = num_codebooks if least is None else least
    if checked.ndim != 2 or not first <= checked.shape[0] <= num_codebooks or not checked.size:
        known = num_codebooks if least is None else f"{least} to {num_codebooks}"
        raise ArgumentError(f"codes must be [{known}, frames], are {checked.shape}")
    return np.ascontiguousarray(checked)


def choose_codec(
    name: CodecName,
    path: str | Path,
    num_codebooks: int = 8,
    config: MimiConfig | None = None,
    *,
    measure: Callable[[Codec[Any]], float] | None = None,
) -> MlxCodec | RustCodec:
    """The codec for a session.

    `auto` times both where rustymimi can serve, and takes it if it is clearly faster; elsewhere it
    takes ours, and nothing is loaded or timed for the choice. The choice is kept in the user's
    cache folder: it is measured once, and runs with the same seed go through the same codec. A step
    does one thing after the other, so the faster codec makes the shorter frame, on whatever device
    MLX runs. On a GPU that was never tried.

    Args:
        name: auto, mlx or rust.
        path: Mimi's weights.
        num_codebooks: codes per frame.
        config: the architecture; None: the published one.
        measure: seconds that a codec takes for a frame, asked each time; `seconds_per_frame`, once
            per machine, if None.

    Raises:
        MoshiError: the name is unknown, or rust was asked for and cannot serve.
        CheckpointError: as `load_mimi`.
    """
    if name not in get_args(CodecName):
        raise MoshiError(f"codec must be one of {', '.join(get_args(CodecName))}; is {name!r}")
    if name == "rust":
        check_mimi(path)
        return RustCodec(path, num_codebooks, config)
    ours = MlxCodec(load_mimi(path, num_codebooks, config))
    if name == "mlx" or _rust_impossible(config):
        return ours
    try:
        rust = RustCodec(path, num_codebooks, config)
    except CheckpointError:  # it knows fewer layouts than we
        return ours
    if measure is not None:
        return rust if measure(rust) < _CLEARLY_FASTER * measure(ours) else ours
    key = _choice_key(num_codebooks)
    chosen = _recorded_choice(key)
    if chosen is None:
        faster = seconds_per_frame(rust) < _CLEARLY_FASTER * seconds_per_frame(ours)
        chosen = "rust" if faster else "mlx"
        _record_choice(key, chosen)
    return rust if chosen == "rust" else ours


def _choice_key(num_codebooks: int) -> str:
    """What a choice depends on: the device, the versions of both codecs, the codes per frame."""
    device = mx.device_info().get("device_name", platform.machine())
    versions = ", ".join(f"{name} {version(name)}" for name in ("mlx", "rustymimi"))
    return f"{device}, {versions}, {num_codebooks} codebooks"


def _recorded_choice(key: str) -> str | None:
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads((cache_folder() / _CHOICES).read_text(encoding="utf-8")).get(key)
        return found if found in ("mlx", "rust") else None
    return None


def _record_choice(key: str, chosen: str) -> None:
    """Keeps the choice, so that the same seed goes through the same codec next time."""
    path = cache_folder() / _CHOICES
    with suppress(OSError):  # then it is measured again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {key: chosen})


def seconds_per_frame(codec: Codec[Any]) -> float:
    """What a codec takes per frame, there and back: the best of few, after a warm-up."""
    state = codec.init_state()
    pcm = np.random.default_rng(0).uniform(-0.1, 0.1, codec.frame_size)
    times = []
    for _ in range(1 + _TIMED_FRAMES):
        began = time.perf_counter()
        codec.decode_step(codec.encode_step(pcm, state), state)
        times.append(time.perf_counter() - began)
    return min(times[1:])
