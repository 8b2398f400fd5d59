"""Checks of what a pretraining is asked for, when it is built: a mistake must not wait for the first batch."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from s2kit.pretraining.colours import ColourChanges
from s2kit.tasks.base import overrides_for

#: What follows from the backbone, so that no config says it.
FOLLOWING = ("embed_dim", "patch_pixels", "in_channels")


def check_choices(function: Callable, options: Mapping[str, Any]) -> None:
    """Check the arguments of ``function`` that are annotated as ``Literal``: only the command line does so by itself.

    Raises:
        ValueError: A value is none of its choices.
    """
    for name, hint in get_type_hints(function).items():
        if get_origin(hint) is Literal and options[name] not in get_args(hint):
            raise ValueError(f"{name} must be one of {', '.join(get_args(hint))}, got {options[name]!r}")


def check_options(options: Mapping[str, Any]) -> None:
    """Check the values of a ``Pretraining``'s own arguments, as far as nothing that is built with them does.

    Raises:
        ValueError: A value cannot be, or the objective has no term that learns.
    """
    views, local_views = options["views"], options["local_views"]
    if views < 1 or local_views < 0:
        raise ValueError(f"views={views}, local_views={local_views}: at least one global crop is needed")
    weights = {name: options[name] for name in ("reconstruction", "contrast", "koleo")}
    if not all(weight >= 0 for weight in weights.values()) or max(weights.values()) == 0:
        raise ValueError(f"{weights}: the terms' weights must not be negative, nor all 0")
    if not options["reconstruction"] and not options["contrast"]:
        raise ValueError(
            f"{weights}: koleo alone only spreads pictures, learns nothing of what is in them and leaves no metric to "
            "choose a checkpoint by; give reconstruction or contrast a weight"
        )
    if options["contrast"] and views + local_views < 2:
        raise ValueError("contrast needs two views: raise views or local_views")
    for name in ("flip", "blockwise", "centre_momentum", "teacher_momentum"):
        _require(0 <= options[name] <= 1, name, options[name], "from 0 to 1")
    final = options["final_teacher_momentum"]
    _require(final is None or 0 <= final <= 1, "final_teacher_momentum", final, "from 0 to 1")
    for name in ("crop_scale", "local_scale"):
        _require(_is_range(options[name], 1), name, options[name], "a range with 0 < low <= high <= 1")
    _require(_is_range(options["crop_aspect"]), "crop_aspect", options["crop_aspect"], "a range with 0 < low <= high")
    _require(options["student_temperature"] > 0, "student_temperature", options["student_temperature"], "positive")
    temperatures = options["teacher_temperature"]
    usable = len(temperatures) == 2 and all(0 < temperature < math.inf for temperature in temperatures)
    _require(usable, "teacher_temperature", temperatures, "two positive numbers, the first and the last")
    decay, final = options["weight_decay"], options["final_weight_decay"]
    _require(decay >= 0, "weight_decay", decay, "at least 0")
    _require(final is None or final >= 0, "final_weight_decay", final, "at least 0")


def build_colours(overrides: Mapping[str, Any] | None) -> ColourChanges:
    """Return the colour changes with these overrides of their fields.

    Raises:
        ValueError: There is no such field, or a value cannot be.
    """
    _check_fields("colours", overrides or {}, ColourChanges._fields)
    colours = ColourChanges(**(overrides or {}))
    for name in ("jitter", "grayscale", "blur", "solarise", "brightness", "contrast", "saturation"):
        value = getattr(colours, name)
        _require(0 <= value <= 1, f"colours.{name}", value, "from 0 to 1")
    _require(0 <= colours.hue <= 0.5, "colours.hue", colours.hue, "from 0 to 0.5")
    _require(_is_range(colours.sigma), "colours.sigma", colours.sigma, "a range with 0 < low <= high")
    return colours


def fields_for(arch: str, name: str, overrides: dict[str, Any] | None, part: type) -> dict[str, Any]:
    """Return the overrides of the fields of ``part`` that hold for ``arch``.

    Args:
        arch: The backbone's name.
        name: Of the argument that ``overrides`` came as.
        overrides: See ``overrides_for``.
        part: The class that has the fields.

    Raises:
        ValueError: ``part`` has no such field, or it follows from the backbone.
    """
    fields = overrides_for(arch, overrides)
    _check_fields(name, fields, [field for field in inspect.signature(part).parameters if field not in FOLLOWING])
    return fields


def _check_fields(name: str, overrides: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted(set(overrides) - set(known)):
        raise ValueError(f"{name} has no field {', '.join(unknown)}; fields: {', '.join(known)}")


def _is_range(value: tuple[float, float], highest: float = math.inf) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1] <= highest and value[1] < math.inf


def _require(holds: bool, name: str, value: Any, possible: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {possible}, got {value}")
