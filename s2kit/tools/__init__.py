"""Sub-commands of ``python -m s2kit`` beside Lightning's own, one module each with ``main(args) -> int``."""
