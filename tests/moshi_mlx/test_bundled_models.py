"""The small models that come with the package, as a user has them: trained, with nano's codec."""

import moshi_mlx
from moshi_mlx import catalog
from moshi_mlx.families.speak import Tts
from moshi_mlx.hub import bundled_folder, resolve

QUESTION = bundled_folder("nano") / "question.wav"


def test_bundled_models_have_all_of_their_files() -> None:
    assert catalog.bundled() == ["nano", "nano-stt", "nano-tts"]
    assert catalog.default_model() == "nano"
    nano = resolve("nano")
    for name in ("nano-stt", "nano-tts"):
        folder, entry = bundled_folder(name), catalog.find(name)
        files = resolve(name)
        assert (files.mimi, files.mimi_config) == (nano.mimi, nano.mimi_config)
        assert files.tokenizer == folder / "tokenizer.model"
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert size < 12e6
        assert entry is not None and abs(entry.nbytes - size) < 20_000


def test_nano_stt_writes_down_the_question() -> None:
    stt = moshi_mlx.load("nano-stt", codec="mlx")
    assert isinstance(stt, moshi_mlx.Stt) and stt.heads == 4
    heard = stt.transcribe(QUESTION)
    assert heard.text == "hello what is your name count to five"
    starts = [word.start for word in heard.words[:5]]
    assert starts == sorted(starts) and 0 < starts[0] < starts[4] < 5


def test_nano_stt_hears_words_of_nano_tts() -> None:
    """A sentence that neither was trained on."""
    tts = moshi_mlx.load("nano-tts", codec="mlx")
    assert isinstance(tts, Tts)
    speech = tts.speak("Tell me what you are doing.", seed=0).all()
    assert [word.text for word in speech.words] == ["Tell", "me", "what", "you", "are", "doing."]
    stt = moshi_mlx.load("nano-stt", codec="mlx")
    assert isinstance(stt, moshi_mlx.Stt)
    assert stt.transcribe(speech.pcm).text == "tell me what you are doing"
