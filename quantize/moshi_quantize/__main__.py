"""`python -m moshi_quantize`."""

from .cli import main

if __name__ == "__main__":
    main()
