"""What a mistake in the options was, in one line: what, where, and what would be right."""

import difflib
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import yaml


def config_files(args: list[str]) -> list[str]:
    """Return the paths given by ``--config`` (or ``-c``), in order."""
    paths = []
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in ("-c", "--config") and (equals or position + 1 < len(args)):
            paths.append(value if equals else args[position + 1])
    return paths


def _keys(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield f"{prefix}{name}", value
            yield from _keys(value, f"{prefix}{name}.")


def _read(path: str) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError):
        return None


def locate(name: str, args: list[str]) -> str:
    """Return where the option whose dotted name ends in ``name`` was given; empty if it is nowhere."""
    ending = re.compile(rf"(^|\.){re.escape(name)}$")
    for arg in reversed(args):
        flag = arg.split("=")[0]
        if flag.startswith("--") and ending.search(flag[2:]):
            return flag
    for path in reversed(config_files(args)):
        for key, _ in _keys(_read(path)):
            if ending.search(key):
                return f"{path}, {key}"
    return ""


def _annotated_dataclasses(annotation: Any) -> Iterator[type]:
    if inspect.isclass(annotation) and is_dataclass(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _annotated_dataclasses(part)


def option_names(args: list[str]) -> set[str]:
    """Return the names of the options of the classes that the configs in ``args`` name, and of the Trainer."""
    from lightning import Trainer

    from s2kit import callbacks
    from s2kit.run_folder import RunConfig

    classes: list[Any] = [Trainer, RunConfig, *(getattr(callbacks, name) for name in callbacks.__all__)]
    for path in config_files(args):
        for key, value in _keys(_read(path)):
            if key.endswith("class_path"):
                module, _, name = str(value).rpartition(".")
                try:
                    classes.append(getattr(import_module(module), name))
                except (ImportError, AttributeError, ValueError):
                    continue
    names = {"model", "data", "trainer", "run", "checkpoint", "panels", "throughput", "predictions", "seed_everything"}
    for cls in classes:
        for base in inspect.getmro(cls):
            for parameter in inspect.signature(base.__init__).parameters.values() if base is not object else ():
                names.add(parameter.name)
                for group in _annotated_dataclasses(parameter.annotation):
                    names.update(field.name for field in fields(group))
    return names - {"self", "args", "kwargs"}


def _unknown(name: str, args: list[str]) -> str:
    where = locate(name, args) or f"--{name}"
    known = option_names(args)
    wrong = [part for part in name.split(".") if part not in known] or [name.split(".")[-1]]
    candidates = {candidate for part in wrong for candidate in difflib.get_close_matches(part, known - {part}, 2)}
    hint = f"did you mean {' or '.join(sorted(candidates))}?" if candidates else "see --help"
    return _overlay(where, args) or f"{where}: there is no such option; {hint}"


def _overlay(where: str, args: list[str]) -> str:
    """Return what a config of ``paper/`` that is alone, or laid over another task's experiment, must be laid over."""
    path, _, key = where.partition(", ")
    experiment = Path(path).parent.parent / Path(path).name
    if not key or Path(path).parent.name != "paper" or not experiment.is_file():
        return ""
    if any(Path(given).resolve() == experiment.resolve() for given in config_files(args)):
        return ""
    part = key.partition(".")[0]
    chosen = [
        value for file in config_files(args) for name, value in _keys(_read(file)) if name == f"{part}.class_path"
    ]
    lacks = f"{str(chosen[-1]).rpartition('.')[2]} does not have" if chosen else f"needs {part}.class_path"
    return f"{path} sets {key}, which {lacks}: lay it over {experiment}"


def _tidy(text: str) -> str:
    text = re.sub(r"<class '(?:builtins\.)?([\w.]+)'>", r"\1", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    return text.replace("Expected a one of", "expected one of").replace("Expected a ", "expected ")


def _wrong_value(key: str, lines: list[str], args: list[str]) -> str:
    reasons = [line.removeprefix("- ") for line in lines if "NoneType" not in line or "Problem" in line]
    skip = ("Does not validate", "Subtypes", "Errors", "Given value type")
    reasons = [line for line in reasons if not line.startswith(skip)]
    given = next((line.partition(": ")[2] for line in reasons if line.startswith("Given value: ")), None)
    reasons = [line for line in reasons if not line.startswith("Given value: ")]
    text = _tidy(" ".join(reasons)) or "not a valid value"
    if given is not None and "NestedArg" not in given and "Namespace" not in given:
        text += f", got {given!r}"
    return f"{locate(key, args) or key}: {text}"


def explain(message: str, args: list[str]) -> str:
    """Turn a report of the argument parser into one line.

    Args:
        message: What jsonargparse says; often several lines, and silent about the file.
        args: The words of the command line.
    """
    if match := re.match(r"Option '([^']+)' is not accepted", message):
        return _unknown(match[1], args)
    if match := re.match(r"Subcommand '\w+' does not accept option '([^']+)'", message):
        return _unknown(match[1], args)
    if match := re.match(r"unrecognized arguments: --([^\s=]+)", message):
        return _unknown(match[1], args)
    if match := re.match(r"the following arguments are required: (.*)", message):
        missing = " and ".join(name.split(".")[-1] for name in match[1].split(", "))
        return f"{missing} not given: name a config that has them, such as --config experiments/normals.yaml"
    if match := re.match(r"argument (--\w+): expected one argument", message):
        flags = [arg for arg, follower in zip(args, [*args[1:], "--"]) if follower.startswith("--")]
        bare = [arg for arg in flags if arg.startswith(match[1]) and "=" not in arg]
        return f"{(bare or [match[1]])[-1]}: no value given"
    if message.startswith("Problems parsing config"):
        for path in config_files(args):
            try:
                yaml.safe_load(Path(path).read_text())
            except yaml.YAMLError as error:
                mark = getattr(error, "problem_mark", None)
                line = f", line {mark.line + 1}" if mark else ""
                return f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if match := re.match(r'Parser key "([^"]+)":?(.*)', lines[0]):
        if match[1] == "config":
            return f"--config:{match[2].replace('File does not exist', 'there is no file')}"
        return _wrong_value(match[1], [match[2].strip(), *lines[1:]] if match[2].strip() else lines[1:], args)
    return " ".join(lines)


def root_cause(error: BaseException) -> BaseException:
    """Return the error that jsonargparse wrapped while it built a class: the first that the class itself raised."""
    seen = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = error.__cause__ or error.__context__
        wrapped = "jsonargparse" in type(error).__module__ or str(error).startswith(
            ("Does not validate", "Parser key", "Problem")
        )
        if inner is None or not wrapped:
            break
        error = inner
    return error
