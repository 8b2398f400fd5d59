"""Keyed pseudo-random permutations of 0 .. size - 1 that are computed place by place, forwards and backwards.

An alternating Feistel network on pairs (l, r), l in Z_a and r in Z_b with a * b >= size: l += F(r) mod a, then
r += F(l) mod b, and so on. Every such step can be undone, whatever F is, so the whole permutes a * b values. a and b
are close to the square root of size, so that fewer than a values lie outside of the range; a value that lands there is
sent through the network again until it comes back inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary
finite domains", 2002). F is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).

This spreads samples evenly, it hides nothing: it is no cipher to rely on.
"""

import hashlib

import numpy as np

#: With 12 and fewer, some orders of five samples are measurably more frequent than others over 24 000 keys.
ROUNDS = 16

_STEP = np.uint64(0x9E3779B97F4A7C15)


def derive_key(*parts: int | str) -> np.uint64:
    """Return a 64-bit key that is the same in every process and on every machine, unlike Python's ``hash``."""
    text = "/".join(map(str, parts)).encode()
    return np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"s2kit-order").digest(), "little"))


def mix(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 values, each on its own."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def subkeys(key: np.ndarray | np.uint64, number: np.ndarray | int) -> np.ndarray:
    """Return the key of part ``number`` of what ``key`` governs, elementwise."""
    with np.errstate(over="ignore"):  # numpy warns of the intended wrap-around for scalars only
        return mix(np.atleast_1d(np.asarray(key, np.uint64) + _STEP * (np.asarray(number).astype(np.uint64) + _STEP)))


def permute(index: np.ndarray, size: np.ndarray | int, key: np.ndarray | np.uint64) -> np.ndarray:
    """Return the places that the permutation ``key`` of 0 .. size - 1 gives to ``index``.

    Args:
        index: (n,) integers in 0 .. size - 1.
        size: The number of values, at most 2^52; one for all or one for each.
        key: uint64; one for all or one for each.

    Returns:
        (n,) int64 in 0 .. size - 1; distinct for distinct ``index`` of equal ``size`` and ``key``.
    """
    return _walk(index, size, key, range(ROUNDS), add=True)


def unpermute(place: np.ndarray, size: np.ndarray | int, key: np.ndarray | np.uint64) -> np.ndarray:
    """Return the ``index`` that ``permute`` sends to ``place``."""
    return _walk(place, size, key, range(ROUNDS - 1, -1, -1), add=False)


def _walk(values: np.ndarray, size: np.ndarray | int, key: np.ndarray, rounds: range, add: bool) -> np.ndarray:
    values, size = (np.atleast_1d(np.asarray(part)).astype(np.uint64) for part in (values, size))
    key = np.atleast_1d(key)
    values = _network(values, size, key, rounds, add)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        their_size, their_key = (part if part.size == 1 else part[outside] for part in (size, key))
        again = values[outside] = _network(values[outside], their_size, their_key, rounds, add)
        outside = outside[again >= their_size]
    return values.astype(np.int64)


def _network(values: np.ndarray, size: np.ndarray, key: np.ndarray, rounds: range, add: bool) -> np.ndarray:
    a = np.maximum(np.ceil(np.sqrt(size)), 1).astype(np.uint64)
    b = np.maximum((size + a - np.uint64(1)) // a, np.uint64(1))
    left, right = values // b, values % b
    round_keys = subkeys(key, np.arange(ROUNDS)[:, None])
    for number in rounds:
        round_key = round_keys[number]
        if number % 2 == 0:
            shift = mix(right + round_key) % a
            left = (left + (shift if add else a - shift)) % a
        else:
            shift = mix(left + round_key) % b
            right = (right + (shift if add else b - shift)) % b
    return left * b + right
