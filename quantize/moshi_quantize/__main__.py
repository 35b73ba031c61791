"""`python -m moshi_quantize`, and the command `moshi-quantize`."""

import sys


def main() -> int:
    """The program; returns its exit code."""
    try:
        from moshi_mlx.distributions import refuse_foreign_files

        if refuse_foreign_files("moshi-quantize"):
            return 2
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        return 130
    except ImportError as error:  # another's moshi_mlx hides ours, or MLX's library is not there
        if (error.name or "").startswith(__package__ or "moshi_quantize"):
            raise  # a mistake of ours
        sys.stderr.write(
            f"moshi-quantize: cannot start: {' '.join(str(error).split())}. "
            "`python -m moshi_local` says why, and how to fix it.\n"
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
