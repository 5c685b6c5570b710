"""Encodes pictures as PNG, the baseline of sending raw images."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Codec, Payload, Shape, State, stateless
from edgewise.core.errors import FrameRefused, InputError
from edgewise.core.spec import Spec


def png(low: float = 0.0, high: float = 255.0, num_levels: int = 256) -> Codec:
    """Writes the last two axes as grey PNG pictures; exact for inputs that lie on the levels.

    The baseline "send the picture", not a codec for updates. Digits of 0…16 scaled to 0…1 are exact with
    `png(0, 1, 17)`. Values outside [low, high] are clipped to it.

    Args:
        low: Value of black.
        high: Value of the brightest level.
        num_levels: Levels from low to high, 2 to 256.

    Returns:
        A codec: float32[..., h, w] -> values uint8[bytes of all files], lengths uint32[pictures].

    Raises:
        InputError: If the range is empty or the levels do not fit in a byte; on encoding, if there are not two axes.

    Reference:
        Boutell, "PNG Specification", RFC 2083, 1997; written by Pillow.
    """
    if not high > low or not 2 <= num_levels <= 256:
        raise InputError(f"png needs low < high and 2 to 256 levels, found {low!r}, {high!r}, {num_levels!r}.")
    step = (high - low) / (num_levels - 1)

    def encode(array: NDArray[np.float32], state: State, rng: np.random.Generator) -> tuple[Payload, State]:
        if array.ndim < 2 or 0 in array.shape:
            raise InputError(f"png encodes pictures float32[..., height, width], found shape {array.shape}.")
        levels = np.clip(np.rint((array - low) / step), 0, num_levels - 1).astype(np.uint8)
        files = [_written(picture) for picture in levels.reshape(-1, *array.shape[-2:])]
        lengths = np.array([len(f) for f in files], np.uint32)
        return Payload(array.shape, {"values": np.frombuffer(b"".join(files), np.uint8), "lengths": lengths}), state

    def decode(payload: Payload) -> NDArray[np.float32]:
        size = payload.shape[-2:]
        num_pictures = int(np.prod(payload.shape[:-2], dtype=np.int64))
        lengths = payload.array("lengths", np.uint32, (num_pictures,)).astype(np.int64)
        data = payload.array("values", np.uint8, (int(lengths.sum()),))
        files = np.split(data, np.cumsum(lengths)[:-1]) if num_pictures else []
        levels = np.stack([_read(f.tobytes(), size) for f in files]) if files else np.empty((0, *size), np.uint8)
        return (low + levels * step).astype(np.float32).reshape(payload.shape)

    spec = Spec("png", {"low": low, "high": high, "num_levels": num_levels})
    return Codec(spec=spec, init=stateless, encode=encode, decode=decode)


def _written(picture: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture, "L").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _read(data: bytes, size: Shape) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        # Checked before the pixels are unpacked: a small file can claim a huge picture.
        if (image.height, image.width) != size or image.mode != "L":
            raise FrameRefused(f"a PNG of {image.height} x {image.width} {image.mode} is not a grey one of {size}.")
        return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise FrameRefused(f"{len(data)} bytes are not a PNG: {error}.") from error
