"""Working memory of the decoders, kept from call to call: fresh memory costs more than the arithmetic on it."""

import math
import threading

import numpy as np

_LARGEST_KEPT = 1 << 26  # bytes; a rare huge picture does not occupy its memory for ever
_ALIGNMENT = 64
_STAGGER = 3 * _ALIGNMENT  # buffers at equal offsets in their pages would compete for the same cache lines


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.bytes: dict[str, np.ndarray] = {}


_buffers = _Buffers()


def scratch(name: str, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """Return an uninitialised array that is valid until the next call with the same ``name`` in this thread."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    kept = _buffers.bytes.get(name)
    if kept is None or len(kept) < size:
        raw = np.empty(size + _ALIGNMENT + _STAGGER * 32, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT + _STAGGER * (len(_buffers.bytes) % 32)
        kept = raw[start : start + size]
        if size <= _LARGEST_KEPT:
            _buffers.bytes[name] = kept
    return kept[:size].view(dtype).reshape(shape)
