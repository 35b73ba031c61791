"""What nano's codec learns from when it learns to listen. Needs PyTorch and the package `moshi`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moshi_mlx.hub import bundled_folder

torch = pytest.importorskip("torch")
pytest.importorskip("moshi")

from recipes.nano import codec, codec_listening  # noqa: E402
from recipes.nano.clips import encode  # noqa: E402
from recipes.nano.renditions import training_lines  # noqa: E402
from recipes.nano.speech import PHONES, spelt_in_phones  # noqa: E402


@pytest.fixture(scope="module")
def shipped() -> Any:
    codec.use_plain_convolutions()
    torch.set_num_threads(1)
    return codec.load_published(bundled_folder("nano") / "mimi.safetensors")


def hiss(frames: int) -> Any:
    rng = np.random.default_rng(0)
    return torch.from_numpy(0.05 * rng.standard_normal((1, frames * 1920), np.float32))


def test_codes_are_those_of_the_shipped_codec(shipped: Any) -> None:
    pcm = hiss(12)
    codes, left = codec_listening.Codebooks(shipped.quantizer).codes(
        codec.to_latent(shipped, pcm[:, None])
    )
    np.testing.assert_array_equal(codes[0].T.numpy(), encode([pcm[0].numpy()])[0])
    assert left.shape == (8,)


def test_what_the_decoder_gets_is_what_the_codes_say(shipped: Any) -> None:
    books = codec_listening.Codebooks(shipped.quantizer)
    with torch.no_grad():
        latent = codec.to_latent(shipped, hiss(12)[:, None])
        quantized, _ = books.quantized(latent)
        wanted = shipped.quantizer.decode(books.codes(latent)[0].transpose(1, 2))
    torch.testing.assert_close(quantized, wanted, atol=1e-4, rtol=1e-4)


def test_the_error_is_of_what_is_quantized(shipped: Any) -> None:
    books = codec_listening.Codebooks(shipped.quantizer)
    with torch.no_grad():
        latent = codec.to_latent(shipped, hiss(12)[:, None])
        _, left = books.codes(latent)
        assert books.error(latent, latent, left) == 0
        error = books.error(1.5 * latent, latent, left)
        halves = [b.input_proj(latent).square().sum(1).mean() for b in books.branches]
        torch.testing.assert_close(error, 0.25 * (halves[0] / left[0] + halves[1] / left[1]))


def test_phones_are_read_off_in_their_order() -> None:
    phones = [PHONES.index(p) for p in spelt_in_phones("hello there")]
    steps = [n for p in phones for n in (p, 0)]
    steps += [0] * (-len(steps) % 4)
    scores = torch.full((1, len(steps), len(PHONES)), -20.0)
    scores[0, torch.arange(len(steps)), torch.tensor(steps)] = 20.0
    frames = len(steps) // 4

    def head(semantic: Any) -> Any:
        return scores.reshape(1, frames, -1)

    semantic = torch.zeros(1, 64, frames)
    assert codec_listening.phone_error(head, semantic, [phones]) < 1e-3
    assert codec_listening.phone_error(head, semantic, [phones[::-1]]) > 1


def test_samples_are_whole_frames_and_silence_has_no_phones(tmp_path: Path) -> None:
    lines = [line for line in training_lines()[:400] if line.rendition.voice.startswith("flite")]
    heard = codec_listening.LineSampler(lines[:3], tmp_path, 0).batch(12)
    assert heard.source.shape == heard.clean.shape
    assert heard.source.shape[1] % 1920 == 0
    quiet = [i for i, clean in enumerate(heard.clean) if not clean.any()]
    assert all((not heard.phones[i]) == (i in quiet) for i in range(12))
    assert float(heard.source.abs().max()) <= 1
