"""Peak rates of GPUs: dense bfloat16 matrix products, from the makers' data sheets."""

from __future__ import annotations

#: TFLOP/s without sparsity, float32 accumulation. The first key that the device's name contains counts, so longer
#: names stand before shorter ones.
BF16_PEAKS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 6000 Ada": 364.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def peak_tflops(name: str) -> float | None:
    """Dense bf16 peak in TFLOP/s of a device named as `torch.cuda.get_device_name` does; None if it is not known."""
    words = f" {name.upper().replace('-', ' ')} "
    return next((peak for key, peak in BF16_PEAKS.items() if f" {key.upper()} " in words), None)
