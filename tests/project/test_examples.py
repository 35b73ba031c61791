"""The examples run, but for the one that needs a sound card."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from moshi_mlx.hub import bundled_folder
from tests.fixtures import make_stt

EXAMPLES = Path(__file__).parents[2] / "examples"
SPEAKER = Path(__file__).parents[1] / "fixtures" / "tts" / "ahead"
QUESTION = str(bundled_folder("nano") / "question.wav")
RUNS = {
    "answer_a_file.py": ([QUESTION, "answer.wav"], "Hello!"),
    "event_loop.py": ([], "frame 11: "),
    "events_as_json.py": ([QUESTION, "answer.wav"], '"word": {"text": "Hello!", "start": '),
    "say.py": ([QUESTION, "answer.wav"], "s  said: One moment please.\n"),
    "save_and_resume.py": (["state.safetensors"], "the same to the last bit: True"),
    "speak.py": ([str(SPEAKER), "speech.wav"], "(pause)\n"),
    "transcribe.py": (["./random", QUESTION], " s  "),
    "two_at_once.py": ([QUESTION], "asked: Hello!\nasked: How\n"),
}


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example(name: str, tmp_path: Path) -> None:
    path = EXAMPLES / name
    if name == "transcribe.py":
        make_stt.write(tmp_path / "random")
    usage = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert usage is not None
    assert f"python examples/{name}" in usage
    if name not in RUNS:
        assert name in ("live_words.py", "talk_over_a_socket.py")  # test_server runs the latter
        return
    arguments, said = RUNS[name]
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
