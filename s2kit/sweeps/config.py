"""What a sweep's YAML says, and the commands that it comes to."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from s2kit.errors import UserError

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
#: Placeholders within placeholders that are followed.
_DEPTH = 5


@dataclass(frozen=True)
class Step:
    """A command of a trial.

    Attributes:
        name: Of the step.
        command: Words of a command of ``python -m s2kit``, with placeholders.
        folder: What the step writes; removed before the step begins anew.
        resume: A file, and the words to add to the command once it is there: then an interrupted step goes on.
        without: Values of axes (axis -> values) whose trials leave the step out.
    """

    name: str
    command: list[str]
    folder: str | None = None
    resume: tuple[str, list[str]] | None = None
    without: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A number of a trial.

    Attributes:
        name: Of the number: a column of the table.
        file: The JSON file that holds it.
        key: Names of the nested entries that lead to it.
        higher_is_better: Whether the largest ranks first.
        ranked: Whether it counts in the mean rank.
    """

    name: str
    file: str
    key: tuple[str, ...]
    higher_is_better: bool
    ranked: bool = True


@dataclass(frozen=True)
class Curve:
    """A quantity over the course of a run: columns of a CSV file of a step's run folder."""

    title: str
    file: str
    x: str
    y: str
    log: bool = False


@dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        path: Its YAML.
        name: Of the study and its files.
        folder: Holds everything: a folder a trial, the study, tables, curves.
        grid: Axis -> value -> placeholders that it sets.
        values: Placeholders that no axis sets.
        setup: Commands that run once, before any trial.
        steps: Commands of a trial, one after the other.
        results: Numbers of a finished trial.
        average: The axis that tables average over; None for none.
        equal: Step and FLOPs of its training that all trials have in common; sets ``{steps}``.
        curves: Of the trials' runs.
    """

    path: Path
    name: str
    folder: Path
    grid: dict[str, dict[str, dict[str, Any]]]
    values: dict[str, Any]
    setup: list[Step]
    steps: list[Step]
    results: list[Result]
    average: str | None = None
    equal: tuple[str, float] | None = None
    curves: list[Curve] = field(default_factory=list)

    def trials(self) -> list[Trial]:
        """Return the points of the grid, the last axis the fastest."""
        return [
            Trial(self, dict(zip(self.grid, values))) for values in itertools.product(*map(list, self.grid.values()))
        ]


def contents_of(words: Sequence[str]) -> str:
    """Return a digest of what the YAML files among a command's words say, comments left out; empty without any."""
    paths = [Path(word.rpartition("=")[2]) for word in words if word.endswith((".yaml", ".yml"))]
    said = [yaml.safe_load(path.read_text()) for path in paths if path.is_file()]
    return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()[:16] if said else ""


@dataclass(frozen=True)
class Trial:
    """A point of the grid: axis -> name of its value."""

    sweep: Sweep
    point: dict[str, str]

    @property
    def name(self) -> str:
        """Of its folder."""
        return ",".join(f"{axis}={value}" for axis, value in self.point.items())

    @property
    def folder(self) -> Path:
        return self.sweep.folder / self.name

    def steps(self) -> list[Step]:
        """Return the steps that this trial has."""
        return [
            step
            for step in self.sweep.steps
            if not any(self.point[axis] in values for axis, values in step.without.items())
        ]

    def placeholders(self) -> dict[str, Any]:
        """Return what each placeholder stands for: text, or a list of words."""
        chosen = {
            name: value for axis, value in self.point.items() for name, value in self.sweep.grid[axis][value].items()
        }
        return {**base_placeholders(self.sweep), "trial": str(self.folder), "trial_name": self.name, **chosen}

    def words(self, text: list[str], **more: str) -> list[str]:
        """Return words with their placeholders filled in."""
        return fill(text, {**self.placeholders(), **more}, str(self.sweep.path))

    def path(self, text: str) -> Path:
        """Return a path with its placeholders filled in."""
        return Path(self.words([text])[0])


def base_placeholders(sweep: Sweep) -> dict[str, Any]:
    """Return the placeholders that do not depend on a trial."""
    return {**sweep.values, "folder": str(sweep.folder), "name": sweep.name}


def fill(words: list[str], values: Mapping[str, Any], where: str) -> list[str]:
    """Fill in placeholders ``{name}``, also those in what they stand for.

    A word that is nothing but a placeholder for a list becomes that list's words.

    Raises:
        UserError: There is no such placeholder, or a list stands within a word.
    """
    for _ in range(_DEPTH):
        filled: list[str] = []
        for word in words:
            whole = _PLACEHOLDER.fullmatch(word)
            if whole and isinstance(values.get(whole[1]), list):
                filled += values[whole[1]]
            else:
                filled.append(_PLACEHOLDER.sub(lambda match: _text(match[1], values, where), word))
        if filled == words:
            return filled
        words = filled
    raise UserError(f"{where}: placeholders refer to each other without end, in: {' '.join(words)}")


def _text(name: str, values: Mapping[str, Any], where: str) -> str:
    if name not in values:
        raise UserError(f"{where}: there is no placeholder {{{name}}}; there are: {', '.join(sorted(values))}")
    if isinstance(values[name], list):
        raise UserError(f"{where}: {{{name}}} stands for several words, so it must be a word of its own")
    return str(values[name])


# ---------------------------------------------------------------------------------------------------- reading


class _Reader:
    """Takes entries of a mapping, and says where what is wrong."""

    def __init__(self, content: Any, where: str, known: tuple[str, ...]) -> None:
        if not isinstance(content, dict):
            raise UserError(f"{where} must be a mapping with {', '.join(known)}, got {content!r}")
        unknown = [str(name) for name in content if name not in known]
        if unknown:
            raise UserError(f"{where} has {unknown[0]!r}; known: {', '.join(known)}")
        self.content, self.where = content, where

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """Return an entry; without ``default``, it must be there."""
        value = self.content.get(name, default)
        if not isinstance(value, kind) and not (name not in self.content and default is not None):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            right = " or ".join(
                {"dict": "a mapping", "list": "a list", "str": "text"}.get(k.__name__, "a number") for k in kinds
            )
            raise UserError(f"{self.where}, {name}: must be {right}, got {value!r}")
        return value


def read_sweep(path: str | Path, folder: str | None = None, flops: float | None = None) -> Sweep:
    """Read a sweep's YAML; docs/pretraining.md says what is in it.

    Args:
        path: Of the YAML.
        folder, flops: In place of what it says under ``folder`` and ``equal``, to try a sweep with less.

    Raises:
        UserError: It cannot be read, or an entry makes no sense; the text names file, key and value.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror.lower()}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    known = ("name", "folder", "setup", "grid", "values", "steps", "results", "average", "equal", "curves")
    top = _Reader(content, str(path), known)
    name = top.take("name", str, path.stem)
    grid = {
        str(axis): _axis(values, f"{path}, grid, {axis}", str(axis)) for axis, values in top.take("grid", dict).items()
    }
    sweep = Sweep(
        path=path,
        name=name,
        folder=Path(folder or top.take("folder", str, f"runs/sweeps/{name}")),
        grid=grid,
        values={key: _words(value) for key, value in top.take("values", dict, {}).items()},
        setup=[_step(key, value, f"{path}, setup, {key}", grid) for key, value in top.take("setup", dict, {}).items()],
        steps=[_step(key, value, f"{path}, steps, {key}", grid) for key, value in top.take("steps", dict).items()],
        results=[_result(key, value, f"{path}, results, {key}") for key, value in top.take("results", dict).items()],
        average=content.get("average"),
        equal=_equal(content.get("equal"), f"{path}, equal", flops),
        curves=[_curve(key, value, f"{path}, curves, {key}") for key, value in top.take("curves", dict, {}).items()],
    )
    _check(sweep)
    return sweep


def _check(sweep: Sweep) -> None:
    if not sweep.grid or not sweep.steps or not sweep.results:
        raise UserError(f"{sweep.path}: grid, steps and results must each have an entry")
    if sweep.average is not None and sweep.average not in sweep.grid:
        raise UserError(f"{sweep.path}, average: {sweep.average!r} is no axis of the grid: {', '.join(sweep.grid)}")
    names = [step.name for step in sweep.steps]
    if sweep.equal is not None and sweep.equal[0] not in names:
        raise UserError(f"{sweep.path}, equal, step: {sweep.equal[0]!r} is no step: {', '.join(names)}")
    more = {"steps": "0"} if sweep.equal else {}
    for trial in sweep.trials():
        for step in trial.steps():
            trial.words(step.command, **more)
        for text in [result.file for result in sweep.results] + [curve.file for curve in sweep.curves]:
            trial.path(text)
    for step in sweep.setup:
        fill(step.command, base_placeholders(sweep), str(sweep.path))


def _words(value: Any) -> Any:
    return [str(word) for word in value] if isinstance(value, list) else str(value)


def _axis(values: Any, where: str, axis: str) -> dict[str, dict[str, Any]]:
    """Return value -> placeholders; a list's values stand for themselves under the axis's name."""
    if isinstance(values, list):
        values = {str(value): str(value) for value in values}
    if not isinstance(values, dict) or not values:
        raise UserError(f"{where}: must be a list of values, or a mapping from their names to options, got {values!r}")
    found = {}
    for name, value in values.items():
        if not re.fullmatch(r"[\w.+-]+", str(name)):
            raise UserError(f"{where}: {name!r} names a folder, so it may have letters, digits and . _ + - only")
        given = value if isinstance(value, dict) else {axis: value}
        found[str(name)] = {key: _words(part) for key, part in given.items()}
    return found


def _step(name: str, content: Any, where: str, grid: Mapping[str, Any]) -> Step:
    if isinstance(content, str):
        content = {"command": content}
    reader = _Reader(content, where, ("command", "folder", "resume", "without"))
    resume = content.get("resume")
    if resume is not None:
        given = _Reader(resume, f"{where}, resume", ("file", "add"))
        resume = (given.take("file", str), shlex.split(given.take("add", str)))
    without = {}
    for axis, values in reader.take("without", dict, {}).items():
        listed = [str(value) for value in (values if isinstance(values, list) else [values])]
        wrong = [value for value in listed if value not in grid.get(axis, {})]
        if wrong or axis not in grid:
            raise UserError(f"{where}, without, {axis}: {', '.join(wrong) or axis} is not in the grid")
        without[axis] = listed
    command = shlex.split(reader.take("command", str))
    return Step(str(name), command, content.get("folder"), resume, without)


def _result(name: str, content: Any, where: str) -> Result:
    reader = _Reader(content, where, ("file", "key", "best", "rank"))
    best = reader.take("best", str)
    if best not in ("min", "max"):
        raise UserError(f"{where}, best: must be min or max, got {best!r}")
    key = tuple(str(part) for part in reader.take("key", list))
    return Result(str(name), reader.take("file", str), key, best == "max", content.get("rank", True) is not False)


def _equal(content: Any, where: str, instead: float | None) -> tuple[str, float] | None:
    if content is None:
        if instead is not None:
            raise UserError(f"{where}: there is none, so there are no FLOPs to set")
        return None
    reader = _Reader(content, where, ("step", "flops"))
    try:
        flops = float(content.get("flops"))
    except (TypeError, ValueError):
        flops = 0.0
    if not flops > 0:
        raise UserError(f"{where}, flops: must be a number above 0, got {content.get('flops')!r}")
    return reader.take("step", str), instead or flops


def _curve(title: str, content: Any, where: str) -> Curve:
    reader = _Reader(content, where, ("file", "x", "y", "log"))
    return Curve(
        str(title),
        reader.take("file", str),
        reader.take("x", str),
        reader.take("y", str),
        bool(content.get("log", False)),
    )
