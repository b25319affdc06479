"""``python -m agent`` is ``atoll``."""

import sys

from agent.cli.main import main

sys.exit(main())
