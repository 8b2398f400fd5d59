"""What a task says about predicting pictures of any size: network inputs, mirrors, scales, tiles, masks, files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from data_modules.transforms import EvalTransform
from s2kit.inference.geometry import rect_of
from s2kit.inference.tiles import WholePass, Window

if TYPE_CHECKING:
    from s2kit.inference.predictor import Result


class PredictionHooks:
    """The part of ``Task`` that the prediction engine (``s2kit.inference``) calls, as it is for a dense map."""

    #: How a picture is brought into the network's input.
    picture_fit: ClassVar[Literal["letterbox", "stretch"]] = "letterbox"
    #: Whether a picture may be cut into tiles, and whether these need the whole picture's pass.
    takes_tiles: ClassVar[bool] = True
    tiles_need_whole: ClassVar[bool] = False
    #: Whether a foreground mask changes the result.
    takes_mask: ClassVar[bool] = False
    #: Whether a picture's people are predicted one by one, in boxes.
    takes_boxes: ClassVar[bool] = False

    # ---------------------------------------------------------------------------------------------- network inputs

    def picture_transform(
        self, image_size: tuple[int, int] | None = None
    ) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Return what fits a picture of any size into the network's input: ``transform(sample) -> item``."""
        return EvalTransform(image_size or self.image_size, fit=self.picture_fit)

    def samples(self, picture: np.ndarray, boxes: np.ndarray | None) -> list[dict[str, Any]]:
        """Return the raw samples of a picture, one a network input."""
        return [{"key": "", "image": picture}]

    def scaled_item(self, sample: dict[str, Any], base: dict[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
        """Return the item of a raw sample for a network input of another size; ``base`` is the item at its own."""
        return self.picture_transform(image_size)(sample)

    # ----------------------------------------------------------------------------------------- mirrors and scales

    def unflip(self, output: Any) -> Any:
        """Return what the output of mirrored pictures says about the pictures themselves."""
        raise NotImplementedError

    def average(self, outputs: Sequence[Any]) -> Any:
        """Return the mean of several outputs for the same pictures."""
        return sum(outputs) / len(outputs)

    def forward_scaled(self, image: Tensor) -> Any:
        """Map a normalised image of another size than the network's to the head's raw output."""
        return self(image)

    def at_input_size(self, output: Any, size: tuple[int, int]) -> Any:
        """Return the head's output at the (height, width) of the network's input.

        A head that doubles less often than the patches were halved gives a smaller map, as on tokens of 64 pixels.
        """
        if tuple(output.shape[-2:]) == size:
            return output
        return interpolate(output, size, mode="bilinear", align_corners=False)

    def rescale(self, output: Any, batch: dict[str, Any], base_output: Any, base: dict[str, Any]) -> Any:
        """Return what the output of resized pictures says at the network's own size.

        Args:
            output: Of ``batch``.
            batch: With ``crop`` (B, 3, 3) and ``source_size`` (B, 2).
            base_output: The output of the same pictures in ``base``, at the network's own size.
            base: Their batch.
        """
        result = output.new_zeros(*output.shape[:2], *base["image"].shape[-2:])
        for index, size in enumerate(base["source_size"].tolist()):
            top, left, height, width = rect_of(batch["crop"][index], tuple(size), tuple(output.shape[-2:]))
            inner = output[index : index + 1, :, top : top + height, left : left + width]
            top, left, height, width = rect_of(base["crop"][index], tuple(size), tuple(result.shape[-2:]))
            result[index, :, top : top + height, left : left + width] = interpolate(
                inner, (height, width), mode="bilinear", align_corners=False, antialias=height < inner.shape[-2]
            )[0]
        return result

    # ------------------------------------------------------------------------------------------------------- tiles

    def whole_pass(self, output: Any, index: int, batch: dict[str, Any]) -> WholePass:
        """Keep what the tiles of sample ``index`` need of the whole picture's output."""
        height, width = (int(side) for side in batch["source_size"][index])
        return WholePass(output[index], batch["crop"][index], (height, width))

    def finish_tile(
        self, output: Any, index: int, batch: dict[str, Any], whole: WholePass | None, window: Window
    ) -> Tensor:
        """Return values (C, h, w) of a tile at its own size, of a kind that can be blended with its neighbours'."""
        return self.finish(output, index, batch)

    def close_tiles(self, values: Tensor) -> Tensor:
        """Return blended values (C, rows, W) finished."""
        return values

    def join_tiles(self, values: Tensor, whole: WholePass | None) -> Any:
        """Return the prediction that ``finish`` would give, of the finished values (..., H, W) of all tiles."""
        return values

    # ----------------------------------------------------------------------------------------------------- results

    def to_numpy(self, prediction: Any) -> Any:
        """Return a finished prediction as numpy; maps become ``(H, W, C)``."""
        return prediction.permute(1, 2, 0).float().contiguous().cpu().numpy()

    def gather(self, predictions: Sequence[Any]) -> Any:
        """Return a picture's result from the predictions (as ``to_numpy`` gives them) of its samples."""
        return predictions[0]

    def apply_mask(self, prediction: Any, mask: np.ndarray) -> Any:
        """Return a picture's result where ``mask`` bool (H, W) is true, and nothing (0) elsewhere."""
        return np.where(mask[..., None], prediction, prediction.dtype.type(0))

    def draw(self, prediction: Any, picture: np.ndarray, result: Result | None = None) -> np.ndarray:
        """Draw a picture's result, alone or on it, as uint8 (H, W, 3) RGB."""
        raise NotImplementedError

    def views(self, prediction: Any, picture: np.ndarray, result: Result | None = None) -> dict[str, np.ndarray]:
        """Return drawings of a picture's result by title, each as ``draw`` gives it, the most telling first."""
        return {self.name: self.draw(prediction, picture, result)}

    def write(self, stem: Path, prediction: Any, picture: np.ndarray, result: Result | None = None) -> None:
        """Write a picture's result to files whose names start with ``stem``; ``result`` says more of it."""
        np.save(f"{stem}.npy", prediction)

    def predict(
        self,
        images: Sequence[Any] | Any,
        batch_size: int = 8,
        flip: bool | None = None,
        scales: Sequence[float] = (1.0,),
        tile: tuple[int, int] | Literal["auto"] | None = None,
        masks: Sequence[np.ndarray | None] | None = None,
        boxes: Sequence[np.ndarray | None] | None = None,
    ) -> list[Any]:
        """Predict pictures of any size.

        Args:
            images: A picture or several: uint8 arrays (H, W, 3) RGB, PIL's pictures, or what the command ``predict``
                takes: a file, a folder, a glob pattern, a list (``.txt``), a video, the URL of a picture or a video.
            batch_size: Network inputs per forward pass: pictures, tiles or people.
            flip: Whether to average with the mirrored picture; by default as the model was built.
            scales: Factors on the network's input, whose outputs are averaged.
            tile: (height, width) of overlapping tiles in the picture's pixels, ``auto`` for the network's own size, or
                None.
            masks: For each picture its foreground, bool (H, W), or None; the result is 0 elsewhere.
            boxes: For each picture its people, (N, 4) x0, y0, x1, y1 in continuous pixels, or None for the whole
                picture as one person.

        Returns:
            One result a picture, in order, at the picture's own size, as numpy (what it is, the task's ``finish`` says;
            poses are (N, K, 3), N people); of a video one a frame.

        Raises:
            data_modules.images.ImageError: If a file cannot be read, or a name means nothing.
            ValueError: If masks or boxes do not fit the pictures or the task, or a picture or ``tile`` is none.
        """
        from s2kit.inference.predictor import predict_images

        if isinstance(images, str | Path | Image.Image) or getattr(images, "ndim", None) in (2, 3):
            images = [images]
            masks, boxes = ([given] if _is_one(given, rank) else given for given, rank in ((masks, 2), (boxes, 2)))
        return predict_images(self, images, batch_size, flip, scales, tile, masks, boxes)


def _is_one(given: Any, rank: int) -> bool:
    """Tell whether ``given`` is one picture's array and not a list of such."""
    return isinstance(given, np.ndarray) and given.ndim == rank
