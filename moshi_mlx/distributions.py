"""What this package is called on the index, what its extras bring, and who else owns its folder.

Kyutai's distribution `moshi-mlx` has a folder `moshi_mlx` and a command `moshi-local` too:
whichever is installed later replaces files of the other, and uninstalling one takes files of both
away. Knows names of distributions and files, and of ours imports `errors` alone, so that it still
works in such a folder.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import MoshiError

DISTRIBUTION = "moshi-local"
_OTHER = "moshi-mlx"
_ONLY_THEIRS = "local.py"  # what their command starts, in all their versions
_ONLY_OURS = "library of moshi-local"  # in the package's first line


def install_hint(extra: str) -> str:
    """The command that installs what an optional feature needs."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Around the import of a package that an extra brings.

    Args:
        extra: its name in pyproject.toml.
        what: the beginning of the message: "plots need matplotlib".

    Raises:
        MoshiError: the import failed; says how to install the extra.
    """
    try:
        yield
    except ImportError as error:
        raise MoshiError(f"{what}: {install_hint(extra)}") from error


def _owners(folder: Path) -> tuple[bool, bool]:
    """Whether a package's `__init__.py` is ours, and whether files of theirs lie in its folder."""
    first = folder / "__init__.py"
    ours = first.is_file() and _ONLY_OURS in first.read_text(encoding="utf-8")
    return ours, (folder / _ONLY_THEIRS).is_file()


def installation_problem(folder: Path | None = None) -> str | None:
    """One line if Kyutai's distribution shares our folder, and how to fix it.

    Args:
        folder: of the package; this one's if None.
    """
    folder = folder or Path(__file__).parent
    ours, theirs = _owners(folder)
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
    ours, _ = _owners(Path(__file__).parent)
    if not ours:
        sys.stderr.write(f"{program}: {installation_problem()}\n")
    return not ours
