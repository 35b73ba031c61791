"""What lies around the program: folders that are missing, limits, streams that cannot say much."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from moshi_local import platform
from moshi_local.machine.verdict import check_before
from moshi_mlx import MoshiError
from moshi_mlx.hub import bundled_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")


def test_a_run_in_poor_surroundings(tmp_path: Path) -> None:
    """No folder for temporary files, no home, only ASCII, no stdout: it answers all the same."""
    source = bundled_folder("nano") / "question.wav"
    code = (
        "import soundfile, sys; from moshi_local.launch import start_talk\n"
        f"pcm, rate = soundfile.read({str(source)!r}, frames=4000)\n"
        "soundfile.write('in.wav', pcm, rate)\n"
        "sys.argv[1:] = ['run', 'in.wav', 'out.wav', '--tail', '0.2']; sys.exit(start_talk())"
    )
    surroundings = {k: v for k, v in os.environ.items() if k != "HOME"}
    surroundings |= {"TMPDIR": "/nonexistent", "TMP": "/nonexistent", "PYTHONIOENCODING": "ascii"}
    surroundings |= {"LC_ALL": "C", "PYTHONUTF8": "0", "XDG_CACHE_HOME": "/proc/none"}
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" >&-', sys.executable, code],
        env=surroundings, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out.wav").stat().st_size > 44


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("speak hello -o - >&-", 0, ""),
        ("speak hello -o made.wav 2>&-", 0, ""),
        ("speak hello -o made.wav 2>/dev/full", 0, ""),
        ("speak - -o made.wav <&-", 2, "standard input has no text"),
        ("transcribe - <&-", 2, "standard input is empty: it has no samples"),
        ("devices >&-", 0, ""),
    ],
)
def test_streams_that_are_closed(tmp_path: Path, command: str, code: int, told: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m moshi_local {command}', sys.executable],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert told in done.stderr.split("\n")[-2:][0]
    assert (tmp_path / "made.wav").exists() == (code == 0 and "made" in command)


def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.wav")
    command = [sys.executable, "-m", "moshi_local", "speak", "hello", "-o", name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / name).stat().st_size > 1000


def test_a_limit_of_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX ends the process where it may not map more, so a model that does not fit is refused."""
    total = platform.machine().memory_total
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + (100 << 20)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, resource.RLIM_INFINITY))
    here = platform.machine()
    assert 50 << 20 < here.memory_total <= 100 << 20 < total
    with pytest.raises(MoshiError, match=r"nano needs 0\.3 GB.* Use --force to try it anyway"):
        check_before("nano", here=here)
