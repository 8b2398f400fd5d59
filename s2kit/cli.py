"""``python -m s2kit``: LightningCLI's fit, validate, test and predict, and the tools beside them."""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from s2kit.errors import UserError
from s2kit.version import __version__

COMMANDS = {
    "fit": "train a task, then test the best checkpoint and export its weights",
    "validate": "score a checkpoint or weights on the validation set",
    "test": "score a checkpoint or weights on the test set",
    "predict": "run a model on your own pictures",
}
#: Tools: module and one line. Each module has ``main(args: list[str]) -> int``.
TOOLS = {
    "data": (
        "s2kit.tools.data",
        "make, import, check and look at data: synth, pack, import, index, verify, stats, show",
    ),
    "convert": ("s2kit.tools.convert", "say what weights are, and write them in another layout"),
    "bench": (
        "s2kit.tools.bench",
        "measure a backbone beside the transformers port, and reading beside other readers",
    ),
    "probe": ("s2kit.tools.probe", "score a frozen backbone: light heads for the tasks, and nearest neighbours"),
    "sweep": ("s2kit.tools.sweep", "run a grid of commands, restartable at any point, and tabulate the results"),
    "plan": ("s2kit.tools.plan", "say what a config costs: parameters, FLOPs, memory, batch, time"),
}

OVERVIEW = """\
usage: python -m s2kit COMMAND [options]

A kit to train, score and run Sapiens2 human-centred vision transformers.

commands:
{commands}

Start here: synthetic people are made, a small model learns their surface normals, is tested and exported.
  python -m s2kit fit --config experiments/normals.yaml

Then run it on your own pictures:
  python -m s2kit predict FOLDER --weights runs/normals/version_0 --out results

Configs merge from left to right, and options override them: --config A.yaml --config B.yaml --model.lr 1e-4
  python -m s2kit COMMAND --help            the options of a command
  python -m s2kit fit --config A.yaml --print_config    what a config comes to
  --traceback                               with any command: show where an error comes from
"""


def overview() -> str:
    """Return the text of ``python -m s2kit --help``."""
    lines = {**COMMANDS, **{name: line for name, (_, line) in TOOLS.items()}}
    return OVERVIEW.format(commands="\n".join(f"  {name:<10}{line}" for name, line in lines.items()))


def is_lightning(args: list[str]) -> bool:
    """Tell whether the words after ``predict`` mean LightningCLI's command, which is made by a config."""
    return any(re.match(r"(-c|--config|--print_config)(=|$)|--(model|data|trainer)\b", arg) for arg in args)


def run(args: list[str]) -> int:
    """Run one command; errors propagate."""
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"s2kit {__version__}")
        return 0
    command = args[0]
    if command == "predict" and not is_lightning(args[1:]):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        return import_module("s2kit.tools.predict").main(args[1:])
    if command in TOOLS:
        return import_module(TOOLS[command][0]).main(args[1:])
    if command in COMMANDS:
        # OpenMP's threads spin while they wait. Where loader processes share the cores, or another program does, a step
        # then takes several times as long (measured on 2 cores: 8.5 s for 1.7 s). It must be set before torch loads.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from s2kit.lightning_cli import run_lightning

        return run_lightning(args)
    known = ", ".join([*COMMANDS, *TOOLS])
    print(f"s2kit: error: there is no command {command!r}; choose from: {known}", file=sys.stderr)
    return 2


def one_line(error: BaseException) -> str:
    """Return an error as one line: its own words where they were written for the user, its type where not."""
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    if re.match(r"Caught \w+ in DataLoader worker process", text):
        # A loader's process hands over its traceback as text; its last line is the error itself.
        text = text.strip().splitlines()[-1].partition(": ")[2]
    text = " ".join(text.split())
    expected = (UserError, OSError, ValueError, RuntimeError)
    if isinstance(error, expected) and not isinstance(error, UnicodeError | NotImplementedError) and text:
        return text
    return f"{type(error).__name__}: {text or 'no further text'} (run again with --traceback to see where)"


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: The words after the program's name; by default those of this process.

    Returns:
        The exit code: 0, 1 after a failure, 2 after a mistake in the options, 130 after an interruption.
    """
    args = list(sys.argv[1:] if args is None else args)
    show_traceback = "--traceback" in args
    args = [arg for arg in args if arg != "--traceback"]
    try:
        return run(args)
    except SystemExit as stop:  # argparse ends this way after --help, --print_config and usage errors
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("s2kit: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        print(f"s2kit: error: {one_line(error)}", file=sys.stderr)
        return 1
