"""What ``python -m s2kit bench backbone`` runs in child processes: all times in one, each peak in one of its own."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS, PORT = "s2kit", "transformers"
PASSES = ("forward", "forward+backward")
WARMUP = 1
#: Makes glibc give freed tensors back at once, so that holes in its heap do not count.
LIVE_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        arch: name of the backbone.
        image_size: (height, width).
        batch_size: images.
        device: "cpu" or "cuda".
        dtype: of weights and images: "float32" or "bfloat16".
        rope_dtype: of our rotary embedding; the port computes in the images' dtype.
        checkpointing, compile: of our backbone.
        threads: CPU threads; 0 is torch's choice.
    """

    arch: str
    image_size: tuple[int, int]
    batch_size: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    rope_dtype: str = "float32"
    checkpointing: str = "none"
    compile: bool = False
    threads: int = 0


def _ours(case: Case) -> Any:
    from s2kit.models import create_backbone

    # LayerScale starts at 1, so that attention shows in the outputs that are compared.
    options = {"rope_dtype": case.rope_dtype, "checkpointing": case.checkpointing, "compile": case.compile}
    options["layer_scale_init"] = 1.0
    return create_backbone(case.arch, case.image_size, **options)


def _port(case: Case, state: dict[str, Any]) -> Any:
    """The port of the same size; `state` may be on meta, and gives shapes alone."""
    from transformers import Sapiens2Config, Sapiens2Model

    from s2kit.models import backbone_config
    from s2kit.models.checkpoints import to_huggingface

    fields = to_huggingface(state, backbone_config(case.arch, case.image_size, rope_dtype=case.rope_dtype))[1]
    return Sapiens2Model(Sapiens2Config(**fields))


def _prepare(case: Case) -> Any:
    import torch

    if case.threads:
        torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    shape = (case.batch_size, 3, *case.image_size)
    return torch.randn(shape).to(case.device, getattr(torch, case.dtype))


def _place(model: Any, case: Case) -> Any:
    import torch

    return model.to(case.device, getattr(torch, case.dtype))


def _tokens(name: str, model: Any, images: Any) -> Any:
    return model.forward_tokens(images) if name == OURS else model(pixel_values=images).last_hidden_state


def _run(name: str, model: Any, images: Any, passes: str) -> None:
    import torch

    if passes == "forward":
        with torch.inference_mode():
            _tokens(name, model.eval(), images)
        return
    _tokens(name, model.train(), images).float().square().mean().backward()
    model.zero_grad(set_to_none=True)


def _synchronise(case: Case) -> None:
    if case.device == "cuda":
        import torch

        torch.cuda.synchronize()


def _timed(case: Case, run: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the clock, and of the CPU in all threads."""
    _synchronise(case)
    start, busy = time.perf_counter(), time.process_time()
    run()
    _synchronise(case)
    return time.perf_counter() - start, time.process_time() - busy


def measure_times(case: Case, passes: tuple[str, ...], runs: int, peer: bool) -> dict[str, Any]:
    """Times both models on the same weights and images in turns, so that what else the machine does meets both.

    Returns:
        "seconds" and "cpu_seconds": pass -> model -> list of times; "difference": the largest between their outputs,
        None without the peer.
    """
    import torch

    from s2kit.models.checkpoints import to_huggingface

    images = _prepare(case)
    ours = _ours(case)
    models = {OURS: _place(ours, case)}
    difference = None
    if peer:
        # The converter's names of the port's modules; the values go to the very same model that is timed.
        state, _ = to_huggingface(ours.state_dict(), ours.config, module_names=True)
        port = _port(case, ours.state_dict())
        port.load_state_dict(state, strict=True)
        models[PORT] = _place(port, case)
        with torch.inference_mode():
            tokens = [_tokens(name, model.eval(), images).float() for name, model in models.items()]
        difference = float((tokens[0] - tokens[1]).abs().max())
    seconds: dict[str, dict[str, list[float]]] = {each: {name: [] for name in models} for each in passes}
    cpu_seconds: dict[str, dict[str, list[float]]] = {each: {name: [] for name in models} for each in passes}
    for each in passes:
        for turn in range(WARMUP + runs):
            order = list(models.items())
            for name, model in order if turn % 2 else order[::-1]:
                gc.collect()
                taken, busy = _timed(case, lambda: _run(name, model, images, each))  # noqa: B023 (called at once)
                if turn >= WARMUP:
                    seconds[each][name].append(taken)
                    cpu_seconds[each][name].append(busy)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "difference": difference, **_about(case)}


def measure_memory(case: Case, name: str, passes: str) -> float:
    """Peak memory in MiB of one model in this process, weights included, imports excluded.

    On the CPU it is the growth of the resident set from before the model is made, on CUDA what torch has allocated. For
    the resident set to follow what is alive, the process must run under `LIVE_MEMORY`.
    """
    import torch

    images = _prepare(case)
    if name == PORT:
        from transformers import Sapiens2Model  # noqa: F401 (its import is not its memory)
    with torch.device("meta"):
        shapes = _ours(case).state_dict()
    gc.collect()
    before = _resident("VmRSS")
    _forget_peak()
    model = _place(_ours(case) if name == OURS else _port(case, shapes), case)
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        _run(name, model, images, passes)
    if case.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """A line of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}: memory on the CPU is measured on Linux only")


def _forget_peak() -> None:
    """Sets the peak of the resident set to what it is now."""
    Path("/proc/self/clear_refs").write_text("5")


def _about(case: Case) -> dict[str, str]:
    import torch

    name = torch.cuda.get_device_name() if case.device == "cuda" else processor()
    return {"hardware": name, "torch": torch.__version__, "threads": torch.get_num_threads()}


def processor() -> str:
    """Return the processor's name and number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else "CPU"


def median(values: list[float]) -> float:
    return statistics.median(values)
