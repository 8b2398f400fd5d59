"""Equal compute: how many training steps of a trial cost what every trial may."""

from __future__ import annotations

import json
import os
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from s2kit.sweeps.config import Sweep, Trial, contents_of

FLOPS = "flops.json"


@dataclass
class Budget:
    """Fills in ``{steps}``.

    Attributes:
        sweep: See there.
        flops_of: Returns the FLOPs of one training step of a command's words; asked once for each command, and the
            answer kept in ``flops.json`` of the sweep's folder.
    """

    sweep: Sweep
    flops_of: Callable[[list[str]], float]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def steps(self, trial: Trial) -> int | None:
        """Return the steps that cost the budget, at least 1; None without a budget, 0 where it has no such step."""
        if self.sweep.equal is None:
            return None
        name, flops = self.sweep.equal
        step = next((step for step in trial.steps() if step.name == name), None)
        return 0 if step is None else max(1, round(flops / self._cost(trial.words(step.command, steps="1000"))))

    def _cost(self, words: list[str]) -> float:
        key, path = f"{shlex.join(words)} {contents_of(words)}".rstrip(), self.sweep.folder / FLOPS
        with self._lock:
            known = json.loads(path.read_text()) if path.is_file() else {}
            if key not in known:
                known[key] = self.flops_of(words)
                temporary = path.with_name(f".{FLOPS}.{os.getpid()}.tmp")
                temporary.write_text(json.dumps(known, indent=1) + "\n")
                os.replace(temporary, path)
            return known[key]
