"""What is known of a trial: ``state.json`` in its folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field

from s2kit.sweeps.config import Trial

STATE = "state.json"


@dataclass
class State:
    """What is known of a trial, in ``state.json`` of its folder.

    Attributes:
        commands: Step -> its command when it was begun.
        contents: Step -> digest of the YAML files that the command names, as they were then.
        seconds: Step -> how long it took, over all times that it was gone on with.
        done: Finished steps.
        values: Results of a finished trial.
        failed: Why it failed, if it did.
    """

    commands: dict[str, str] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    failed: str | None = None

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``begun`` or ``open``."""
        if self.values:
            return "finished"
        return "failed" if self.failed else "begun" if self.commands else "open"

    @classmethod
    def read(cls, trial: Trial) -> State:
        path = trial.folder / STATE
        return cls(**json.loads(path.read_text())) if path.is_file() else cls()

    def write(self, trial: Trial) -> None:
        temporary = trial.folder / f".{STATE}.tmp"
        temporary.write_text(json.dumps(vars(self), indent=1) + "\n")
        os.replace(temporary, trial.folder / STATE)
