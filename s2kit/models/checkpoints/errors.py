"""The error of every file of weights that cannot be used."""


class WeightsError(ValueError):
    """A file of weights that cannot be read or does not fit; the text says which file, what is wrong and why."""
