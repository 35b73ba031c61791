"""`python -m moshi_local` is `moshi-local`."""

import sys

from .cli import main

sys.exit(main())
