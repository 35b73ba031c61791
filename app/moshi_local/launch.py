"""How the three commands start: imports take a second, and what goes wrong is one line.

Imports the standard library alone until a command begins: Ctrl-C ends it without a word, and a
library that is not ours or cannot be loaded is explained. Knows the commands' names only.
"""

import os
import signal
import sys
from importlib import import_module

_ERROR, _INTERRUPTED = 2, 130


def start_talk() -> int:
    """The command `moshi-local`; returns its exit code."""
    return _launch("moshi-local", "moshi_local.cli")


def start_quantize() -> int:
    """The command `moshi-quantize`; returns its exit code."""
    return _launch("moshi-quantize", "moshi_quantize.cli")


def start_train() -> int:
    """The command `moshi-train`; returns its exit code."""
    return _launch("moshi-train", "moshi_mlx.training.cli")


def _launch(program: str, module: str) -> int:
    """Imports a command and runs it; returns its exit code."""
    _reopen_closed()
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so under nohup
    if heeded:
        signal.signal(signal.SIGINT, _exit)
    for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR"):  # MLX fails where one is no folder
        if not os.access(os.environ.get(name, os.curdir), os.X_OK):
            del os.environ[name]
    try:
        if import_module("moshi_mlx.distributions").refuse_foreign_files(program):
            return _ERROR
        run = import_module(module).main
    except ImportError as error:
        reason = _import_problem(error)
        if reason is None:
            raise
        sys.stderr.write(f"{program}: {reason}\n")
        return _ERROR
    try:
        if heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code: int = run()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    if heeded:
        signal.signal(signal.SIGINT, _exit)
    _leave_portaudio(code)
    return code


def _reopen_closed() -> None:
    """Standard streams that are closed lead nowhere: else the next file would be one of them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest that is free, mostly this one
            if nowhere > number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _exit(number: int, frame: object) -> None:
    os._exit(_INTERRUPTED)


def _leave_portaudio(code: int) -> None:
    """Ends the process if PortAudio is stuck: sounddevice would wait for it, maybe without end."""
    portaudio = sys.modules.get("moshi_local.audio.portaudio")
    if portaudio is not None and portaudio.busy():
        from contextlib import suppress

        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        import_module("moshi_local.audio.quiet").restore_stderr()
        os._exit(code)


def _import_problem(error: ImportError) -> str | None:
    """Why the library cannot be imported, on one line; None if that is a mistake of ours."""
    from importlib.metadata import packages_distributions
    from importlib.util import find_spec
    from pathlib import Path

    found = find_spec("moshi_mlx")
    if found and found.origin and not Path(found.origin).with_name("distributions.py").is_file():
        # Where ours is an editable install, theirs is found first, and none of ours behind it.
        owners = {*packages_distributions().get("moshi_mlx", ())} - {"moshi-local"}
        return (
            f"{Path(found.origin).parent} is another moshi_mlx, such as Kyutai's, and hides the "
            f"library of this checkout. To fix it: pip uninstall {min(owners, default='moshi-mlx')}"
            ", or move that folder away if no package has brought it"
        )
    if Path(error.path or "").parent.name != "mlx":
        return None
    what = f"MLX cannot be loaded: {' '.join(str(error).split())}"
    if "libcuda.so" in what:
        return (
            f"{what}. This is MLX for CUDA, and NVIDIA's driver is missing. To fix it: install the "
            "driver, or replace the package mlx-cuda-12 or mlx-cuda-13 by mlx-cpu"
        )
    return what
