"""What this package is called on the index, and who else has a folder of its name.

Kyutai's distribution `moshi-mlx` owns a folder `moshi_mlx` and a command `moshi-local` too:
whichever is installed later replaces files of the other, and uninstalling one takes files of both
away.
Imports nothing of ours, so that it still works in such a folder.
"""

import sys
from pathlib import Path

DISTRIBUTION = "moshi-local"
_OTHER = "moshi-mlx"
_ONLY_THEIRS = "run_inference.py"
_ONLY_OURS = "library of moshi-local"  # in the package's first line


def install_hint(extra: str) -> str:
    """The command that installs what an optional feature needs."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def installation_problem(folder: Path | None = None) -> str | None:
    """One line if Kyutai's distribution shares our folder, and how to fix it.

    Args:
        folder: of the package; this one's if None.
    """
    folder = folder or Path(__file__).parent
    theirs, first = (folder / _ONLY_THEIRS).is_file(), folder / "__init__.py"
    ours = first.is_file() and _ONLY_OURS in first.read_text(encoding="utf-8")
    if ours and not theirs:
        return None
    if ours:
        what = f"{DISTRIBUTION} works for now, but updating or removing the other breaks it"
    elif theirs:
        what = f"its files have replaced ours, and the command {DISTRIBUTION} is now its own"
    else:
        what = "its removal has taken some of our files away"
    return (
        f"Kyutai's {_OTHER} was installed beside {DISTRIBUTION}, and both own the folder "
        f"{folder.name}: {what}. To fix it: pip uninstall -y {_OTHER} {DISTRIBUTION}, then "
        f"pip install {DISTRIBUTION}"
    )


def refuse_foreign_files(program: str) -> bool:
    """Says so on stderr if our library has been replaced or taken away; True if it has."""
    problem = installation_problem()
    if problem is None or "works for now" in problem:
        return False
    sys.stderr.write(f"{program}: {problem}\n")
    return True
