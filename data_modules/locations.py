"""Where the kit keeps on a machine what it can make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $S2KIT_CACHE, else $XDG_CACHE_HOME/s2kit, else ~/.cache/s2kit; it need not exist."""
    if os.environ.get("S2KIT_CACHE"):
        return Path(os.environ["S2KIT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s2kit"
