"""`python -m glimpose` is `glimpose`."""

import sys

from glimpose.cli import main

sys.exit(main())
