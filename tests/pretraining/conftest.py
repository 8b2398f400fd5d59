"""Lets the tests import ``ranks_run``, which is the program of several processes, too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
