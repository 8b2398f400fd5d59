"""Passes of the mirrored and the resized picture, averaged (test-time augmentation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from s2kit.tasks.base import Task


def scaled_size(image_size: tuple[int, int], scale: float, stride: int) -> tuple[int, int]:
    """Return ``image_size`` (height, width) times ``scale``, in whole tokens of ``stride`` pixels."""
    height, width = (max(1, round(side * scale / stride)) * stride for side in image_size)
    return height, width


def as_float(output: Any) -> Any:
    """Return a tensor, or a named tuple of tensors, in float32: means and resizing do not work in half precision."""
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(*(part.float() for part in output))


def predict_output(
    task: Task, passes: Sequence[dict[str, Any]], flip: bool, call: Callable[..., Any] | None = None
) -> Any:
    """Run a task's network on the same samples in one or several sizes, and average.

    Args:
        task: The task.
        passes: Batches of the same samples; the first at the task's own size, which the result has.
        flip: Whether the mirrored pictures run, too.
        call: ``call(function, image)`` instead of ``function(image)``: how the network runs.

    Returns:
        The head's output for the first batch, the mean over all passes as ``task.average`` takes it.
    """
    call = call or (lambda function, image: function(image))
    outputs: list[Any] = []
    for batch in passes:
        function = task if batch is passes[0] else task.forward_scaled
        image = task.normalise(batch["image"])
        output = call(function, image)
        if flip:
            output = task.average([output, task.unflip(call(function, image.flip(-1)))])
        outputs.append(output if batch is passes[0] else task.rescale(output, batch, outputs[0], passes[0]))
    return outputs[0] if len(outputs) == 1 else task.average(outputs)
