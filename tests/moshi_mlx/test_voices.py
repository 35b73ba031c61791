"""Files of voices, PyTorch's among them, and voices from sound."""

import io
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_mlx import ArgumentError, CheckpointError
from moshi_mlx.loudness import integrated_loudness
from moshi_mlx.safetensors import read_metadata
from moshi_mlx.torch_files import read_torch
from moshi_mlx.voices import LOUDNESS, Voice, load_voice, recording_faults, voice_from_sound

CASES = Path(__file__).parents[1] / "fixtures" / "personaplex"
PT = CASES / "personaplex" / "voice.pt"


# ------------------------------------------------------------------------------- PyTorch's files


def parts() -> dict[str, bytes]:
    with zipfile.ZipFile(PT) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(contents: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    file.seek(0)
    return file


def test_tensors_of_a_published_voice() -> None:
    found = read_torch(PT, "voice.pt")
    expected = mx.load(str(CASES / "personaplex" / "expected.safetensors"))
    assert isinstance(expected, dict)
    assert found.keys() == {"embeddings", "cache"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, np.array(expected[f"voice.{name}"]))


@pytest.mark.parametrize(
    ("storage", "numbers"),
    [("BFloat16Storage", np.array([0x3F80, 0xC000, 0x4049], "<u2").tobytes()),
     ("HalfStorage", np.array([1, -2, 3.140625], "<f2").tobytes()),
     ("IntStorage", np.array([1, -2, 3], "<i4").tobytes())],
)  # fmt: skip
def test_types_of_storages(storage: str, numbers: bytes) -> None:
    contents = {"v/data.pkl": described(storage, 3, 0, (3, 1), (1, 0)), "v/data/0": numbers}
    array = read_torch(packed(contents), "v.pt")["x"]
    assert array.shape == (3, 1)
    assert array.ravel().tolist() == [1, -2, 3 if storage == "IntStorage" else 3.140625]


class Named:
    """What a pickle calls by a name, for making one."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


def described(
    storage: str, count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> bytes:
    """The pickle of {"x": tensor}."""

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()

    def whole(*values: int) -> bytes:
        parts = [
            pickle.LONG1 + b"\x08" + value.to_bytes(8, "little", signed=True) for value in values
        ]
        return b"".join(parts)

    def called(module: str, name: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()

    tensor = (
        called("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + pickle.MARK + text("storage")
        + called("torch", storage) + text("0") + text("cpu") + whole(count) + pickle.TUPLE
        + pickle.BINPERSID + whole(offset) + pickle.MARK + whole(*shape) + pickle.TUPLE
        + pickle.MARK + whole(*strides) + pickle.TUPLE + pickle.NEWFALSE
        + called("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.TUPLE
        + pickle.REDUCE
    )  # fmt: skip
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + text("x") + tensor + pickle.SETITEM + b"."


@pytest.mark.parametrize(
    ("count", "offset", "shape", "strides"),
    [(3, 1, (3,), (1,)), (3, 0, (4,), (1,)), (3, 0, (2, 2), (2, 1)), (3, -1, (1,), (1,)),
     (3, 0, (3,), (-1,)), (2, 0, (2,), (1,)), (3, 0, (10**6,), (0,)), (3, 0, (3,), (1, 1)),
     (10**12, 0, (1,), (1,)), (3, 0, (2**62, 0), (1, 1)), (3, 0, (1,) * 9, (1,) * 9)],
)  # fmt: skip
def test_tensors_outside_their_storage(
    count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    pickled = described("FloatStorage", count, offset, shape, strides)
    with pytest.raises(CheckpointError, match=r"^v\.pt: is no file of PyTorch's, or damaged \("):
        read_torch(packed({"v/data.pkl": pickled, "v/data/0": bytes(12)}), "v.pt")


class Evil:
    def __init__(self, what: Callable[..., Any], *args: Any) -> None:
        self.what, self.args = what, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.what, self.args


def test_a_pickle_that_calls_something_is_refused_by_name(tmp_path: Path) -> None:
    """Whatever the protocol; nothing is run."""
    target = tmp_path / "run"
    calls: list[tuple[Any, str]] = [(os.system, r"(posix|nt)\.system")]
    calls += [(what, rf"(builtins|__builtin__)\.{what.__name__}") for what in (eval, getattr)]
    for what, name in calls:
        for protocol in (2, 4, 5):
            evil = pickle.dumps({"embeddings": Evil(what, f"touch {target}")}, protocol)
            file = packed(parts() | {"voice/data.pkl": evil})
            with pytest.raises(CheckpointError, match=f"voice.pt: asks for '{name}'.* refused"):
                read_torch(file, "voice.pt")
    old = packed(parts() | {"voice/data.pkl": b"(S'touch x'\nios\nsystem\n."})  # calls at once
    with pytest.raises(CheckpointError, match=r"opcode .* is not one of plain tensors"):
        read_torch(old, "voice.pt")
    assert not target.exists()


def test_bombs_are_refused() -> None:
    """Packed parts, sizes that are only said, and a memo with a far number."""
    with pytest.raises(CheckpointError, match="is compressed, which is refused"):
        read_torch(packed(parts() | {"voice/data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED), "v.pt")
    far = b"\x80\x02}r\xff\xff\xff\xff."
    assert read_torch(packed({"v/data.pkl": far}), "v.pt") == {}
    for opcode in (pickle.BYTEARRAY8, pickle.BINBYTES8, pickle.BINUNICODE8):
        huge = b"\x80\x05" + opcode + struct.pack("<Q", 2**40) + b"."
        with pytest.raises(CheckpointError, match="opcode"):
            read_torch(packed({"v/data.pkl": huge}), "v.pt")
    with pytest.raises(CheckpointError, match="is too large"):
        read_torch(packed({"v/data.pkl": bytes(2_000_000)}), "v.pt")
    nested = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    with pytest.raises(CheckpointError, match="must hold tensors by name, holds list"):
        read_torch(packed({"v/data.pkl": nested}), "v.pt")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_one_line(data: st.DataObject) -> None:
    """A byte changed or the end missing: the tensors, or an error that names the file."""
    content = bytearray(PT.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(content), len(content) // 2, 100, 0]))
    said = "voice.pt: "
    with suppress(CheckpointError):
        try:
            read_torch(io.BytesIO(bytes(content[:cut])), "voice.pt")
        except CheckpointError as error:
            said = str(error)
            raise
    assert re.fullmatch("voice.pt: .*", said)


# ------------------------------------------------------------------------------- voices


def test_a_voice_is_saved_with_consent(tmp_path: Path) -> None:
    codes = np.arange(24, dtype=np.int32).reshape(8, 3)
    voice, path = Voice("ADA", codes=codes), tmp_path / "ADA.safetensors"
    for nothing in ("", "  ", None):
        with pytest.raises(ArgumentError, match="consent must say who speaks"):
            voice.save(path, consent=nothing)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"path must end in \.safetensors"):
        voice.save(tmp_path / "ADA.pt", consent="I am Ada and agree.")
    assert not list(tmp_path.iterdir())
    voice.save(path, consent=" I am Ada and agree. ", source="ada.wav")
    again = load_voice(path)
    assert (again.name, again.frames, again.fingerprint) == ("ADA", 3, voice.fingerprint)
    assert again.about["consent"] == "I am Ada and agree."
    assert again.about["source"] == "ada.wav"
    assert again.about["date"].startswith("20")
    assert read_metadata(path)["format"] == "moshi-local voice 1"
    np.testing.assert_array_equal(again.codes, codes)


def test_a_published_voice_in_our_file(tmp_path: Path) -> None:
    published = load_voice(PT)
    path = tmp_path / "V.safetensors"
    published.save(path, consent="from the makers")
    again = load_voice(path)
    assert again.fingerprint == published.fingerprint
    assert again.name == published.name == "voice"
    assert again.frames == 12
    # As others convert them, with the axes of the original and without metadata.
    x, cache = published.embeddings, published.cache
    assert x is not None and cache is not None
    arrays = {"embeddings": mx.array(x[:, None, None]), "cache": mx.array(cache[None])}
    mx.save_safetensors(str(path), arrays)
    assert load_voice(path).fingerprint == published.fingerprint
    assert load_voice(path).name == "V"


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [({"speaker_wavs": np.zeros((1, 2, 2))}, "is a voice that was made for the model "),
     ({"weight": np.zeros((2, 2))}, "is no voice: it needs codes, or embeddings and cache"),
     ({"embeddings": np.zeros((2, 4))}, "is no voice"),
     ({"codes": np.zeros((65, 3), np.int32)}, r"must be \[1 to 64, 1 to 3000\], are"),
     ({"codes": np.full((8, 3), -1)}, "codes of voice V must be from 0 to"),
     ({"codes": np.zeros((8, 3), np.float32) + 0.5}, "codes of voice V must be from 0"),
     ({"codes": np.zeros(8, np.int32)}, "codes must have two axes"),
     ({"embeddings": np.full((2, 4), np.nan), "cache": np.zeros((17, 4), np.int32)}, "finite"),
     ({"embeddings": np.zeros((2, 4), int), "cache": np.zeros((17, 4), np.int32)}, "floats"),
     ({"embeddings": np.zeros((2, 4)), "cache": np.zeros((17, 5), np.int32)}, r"\[17, 5\]"),
     ({"embeddings": np.zeros((2, 3, 4)), "cache": np.zeros((17, 4), np.int32)}, "two axes")],
)  # fmt: skip
def test_files_that_are_no_voice(
    arrays: dict[str, np.ndarray], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "V.safetensors"
    tensors = {name: mx.array(a.astype(np.float32) if a.dtype == float else a.astype(np.int32)
                              if a.dtype == int else a) for name, a in arrays.items()}  # fmt: skip
    mx.save_safetensors(str(path), tensors)
    with pytest.raises(CheckpointError, match=rf"V\.safetensors: .*{problem}"):
        load_voice(path)


def test_no_file_and_other_files(tmp_path: Path) -> None:
    for name in ("none.pt", "none.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            load_voice(tmp_path / name)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.pt: is a text file, not a voice"):
        load_voice(tmp_path / "text.pt")


# ------------------------------------------------------------------------------- loudness


@pytest.mark.parametrize(
    ("rate", "figures"),
    [(24000, (-9.084062451998413, -12.65273547935841, -9.415975985199426, -11.274932248463157)),
     (48000, (-9.072286372219265, -12.652775810024512, -9.404164330218299, -11.273985304902707))],
)  # fmt: skip
def test_loudness_is_pyloudnorms(rate: int, figures: tuple[float, ...]) -> None:
    """Figures of pyloudnorm 0.2.0: tones, one behind the relative gate, and one that grows."""
    t = np.arange(rate * 4) / rate
    sounds = (
        0.5 * np.sin(2 * np.pi * 997 * t),
        0.5 * np.sin(2 * np.pi * 60 * t),
        np.where(t < 2, 0.5, 0.001) * np.sin(2 * np.pi * 1000 * t),
        0.8 * (t / 4) ** 2 * np.sin(2 * np.pi * 440 * t),
    )
    for sound, figure in zip(sounds, figures, strict=True):
        assert integrated_loudness(sound, rate) == pytest.approx(figure, abs=1e-6)


def test_loudness_of_the_standards_tone_and_of_silence() -> None:
    """BS.1770: 997 Hz at full scale in one channel is −3.01 LKFS."""
    tone = np.sin(2 * np.pi * 997 * np.arange(48000) / 48000)
    assert integrated_loudness(tone, 48000) == pytest.approx(-3.01, abs=0.05)
    assert integrated_loudness(np.zeros(48000, np.float32), 48000) == -np.inf
    with pytest.raises(ArgumentError, match=r"measured over 0\.4 s, this sound has 0\.25 s"):
        integrated_loudness(tone[:12000], 48000)


# ------------------------------------------------------------------------------- from sound


class Listener:
    """A codec that keeps what it hears."""

    name, sample_rate, frame_size, num_codebooks = "listener", 24000, 1920, 8

    def init_state(self) -> list[np.ndarray]:
        return []

    def encode_step(self, pcm: Any, state: list[np.ndarray]) -> np.ndarray:
        state.append(np.array(pcm))
        self.heard = state
        return np.full((8, 1), len(state), np.int32)


def syllables(seconds: float, rate: int = 24000) -> np.ndarray:
    """A tone with pauses."""
    t = np.arange(int(seconds * rate)) / rate
    return (0.2 * np.sin(2 * np.pi * 300 * t) * (np.sin(2 * np.pi * 3 * t) > 0)).astype(np.float32)


def test_sound_is_trimmed_levelled_and_padded() -> None:
    codec: Any = Listener()
    speech = syllables(2.0)
    silence = np.zeros(24000, np.float32)
    voice = voice_from_sound(codec, np.concatenate([silence, speech, silence]), name="S")
    heard = np.concatenate(codec.heard)
    assert voice.codes is not None
    assert voice.codes[0].tolist() == list(range(1, len(heard) // 1920 + 1))
    assert 1.9 < len(heard) / 24000 < 2.3
    assert integrated_loudness(heard, 24000) == pytest.approx(LOUDNESS, abs=0.3)
    assert np.abs(heard[:1200]).max() == 0  # the margin, of which the first frame is never heard
    assert heard[-1] == 0


@pytest.mark.parametrize(
    ("sound", "problem"),
    [(np.zeros(48000), r"needs 1 to 60 s of speech, the sound has 0\.0 s"),
     (syllables(0.5), r"the sound has 0\.[56] s"),
     (np.zeros(0), r"the sound has 0\.0 s"),
     (syllables(62.0), r"the sound has 6[12]\.\d s"),
     (np.clip(20 * syllables(2.0), -1, 1), "of the samples are clipped"),
     (0.1 * np.sin(np.arange(48000)), "pauses are only 0 dB below the speech"),
     (3e-4 * syllables(2.0), "the recording is too quiet"),
     (syllables(2.0)[None], r"one channel \[samples\]"),
     (np.full(48000, np.nan), "must be finite")],
)  # fmt: skip
def test_recordings_that_are_refused(sound: np.ndarray, problem: str) -> None:
    codec: Any = Listener()
    with pytest.raises(ArgumentError, match=problem):
        voice_from_sound(codec, sound.astype(np.float32), name="S")


def test_faults_can_be_accepted() -> None:
    codec: Any = Listener()
    noisy = (0.1 * np.sin(np.arange(48000))).astype(np.float32)
    assert recording_faults(syllables(2.0), 24000) == []
    assert voice_from_sound(codec, noisy, name="S", accept_faults=True).frames == 25
    for name in ("", "a\nb", 3):
        with pytest.raises(ArgumentError, match="name must be a voice's name"):
            voice_from_sound(codec, noisy, name=name)  # type: ignore[arg-type]
