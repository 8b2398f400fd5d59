"""Pictures and videos from the web."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_modules.images import ImageError

#: Seconds that a server may be silent, and that a whole file may take.
TIMEOUT, TOTAL_TIMEOUT = 20.0, 600.0
#: Largest picture and video that are fetched, in bytes.
MAX_PICTURE, MAX_VIDEO = 256 << 20, 4 << 30
_CHUNK = 1 << 18


def is_url(text: str) -> bool:
    """Tell whether an input is an address on the web."""
    return text.lower().startswith(("http://", "https://"))


def fetch(url: str, limit: int = MAX_PICTURE, timeout: float = TIMEOUT) -> bytes:
    """Return what lies at ``url``.

    Raises:
        ImageError: If it cannot be had, is larger than ``limit`` bytes, or takes too long.
    """
    return b"".join(_chunks(url, limit, timeout))


def fetch_to(url: str, path: Path, limit: int = MAX_VIDEO, timeout: float = TIMEOUT) -> None:
    """Write what lies at ``url`` to a file; see ``fetch``."""
    with path.open("wb") as file:
        for chunk in _chunks(url, limit, timeout):
            file.write(chunk)


def _chunks(url: str, limit: int, timeout: float) -> Iterator[bytes]:
    request = urllib.request.Request(url, headers={"User-Agent": "s2kit"})
    begin, size = time.monotonic(), 0
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            stated = response.headers.get("Content-Length", "")
            if stated.isdigit() and int(stated) > limit:
                raise ImageError(url, f"it has {int(stated) / 1e6:.0f} MB, more than the limit of {limit / 1e6:.0f}")
            while chunk := _read(response):
                size += len(chunk)
                if size > limit:
                    raise ImageError(url, f"it has more than the limit of {limit / 1e6:.0f} MB")
                if time.monotonic() - begin > TOTAL_TIMEOUT:
                    raise ImageError(url, f"it was not here after {TOTAL_TIMEOUT:.0f} s ({size / 1e6:.1f} MB came)")
                yield chunk
            if stated.isdigit() and size < int(stated):
                raise ImageError(url, f"the connection broke off after {size} of {stated} bytes")
    except urllib.error.HTTPError as error:
        raise ImageError(url, f"the server answers {error.code} ({error.reason})") from None
    except TimeoutError as error:
        raise ImageError(url, f"the server is silent for more than {timeout:g} s") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise ImageError(url, f"the server is silent for more than {timeout:g} s") from error
        raise ImageError(url, f"cannot be fetched, is this machine offline? ({_words(error.reason)})") from None
    except (OSError, ValueError) as error:
        raise ImageError(url, f"cannot be fetched ({_words(error)})") from None
    except Exception as error:  # http.client's own, of a server that speaks no HTTP
        if isinstance(error, ImageError):
            raise
        raise ImageError(url, f"cannot be fetched ({type(error).__name__}: {_words(error)})") from None


def _read(response: BinaryIO) -> bytes:
    # One read of the socket: waiting for a whole chunk would let a slow server go on for ever.
    return response.read1(_CHUNK)


def _words(reason: object) -> str:
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return " ".join(str(text).split())
