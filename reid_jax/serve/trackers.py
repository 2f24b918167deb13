"""What trackers ask of an appearance model, as methods of an Embedder; no tracker is imported.

Frames are BGR u8[h,w,3], as OpenCV reads them. boxmot 25: `get_features(boxes, image)`; deep_sort_realtime:
`predict(crops)`; nwojke/deep_sort: `encoder(image, tlwh)`.
"""

import numpy as np

from reid_jax.errors import DataError
from reid_jax.serve import pictures


def cut(image, boxes):
    """[u8[h,w,3], ...]: what boxes [N,4+] (x1, y1, x2, y2, ...) show of an image u8[H,W,3].

    Boxes are rounded and clipped; an empty one shows one black pixel. DataError for rotated boxes and for
    numbers that are not finite.
    """
    boxes = np.asarray(boxes, np.float64)
    if not boxes.size:
        return []
    if boxes.ndim != 2 or boxes.shape[1] < 4:
        raise DataError(
            f"boxes have shape {boxes.shape}; give rows of x1, y1, x2, y2 (rotated boxes are not cut out: "
            "give the upright ones around them)"
        )
    if not np.isfinite(boxes[:, :4]).all():
        raise DataError("a box has a number that is not finite; leave it out")
    height, width = image.shape[:2]
    corners = np.rint(boxes[:, :4]).clip(0, (width, height, width, height)).astype(int).tolist()
    black = np.zeros((1, 1, 3), np.uint8)
    parts = (image[y1:y2, x1:x2] for x1, y1, x2, y2 in corners)
    return [part if part.size else black for part in parts]


def is_rotated(boxes):
    """Whether boxes are those of a tracker of rotated boxes: cx, cy, w, h, angle."""
    return np.ndim(boxes) == 2 and np.shape(boxes)[1] == 5


class Trackers:
    """Mixin of Embedder, which offers the call f(pictures, channels=...) -> f32[N,D]."""

    def crops(self, image, boxes, *, channels="rgb"):
        """f32[N,D] of the boxes (x1, y1, x2, y2, ...) [N,4+] of one picture of any sort; none: [0,D]."""
        pictures.check_channels(channels)
        return self(cut(self.reader.original(image, channels), boxes))

    def get_features(self, boxes, image):
        """boxmot's: unit f32[N,D] of boxes [N,4+] (x1, y1, x2, y2, ...) of a BGR frame u8[h,w,3]."""
        if is_rotated(boxes):
            raise DataError(
                f"boxes have shape {np.shape(boxes)}: rotated boxes (cx, cy, w, h, angle) are not cut out; "
                "track with upright ones"
            )
        return self.crops(image, boxes, channels="bgr")

    def predict(self, crops):
        """deep_sort_realtime's: a list of f32[D], one for each BGR crop u8[h,w,3]; or use it as `embeds=`."""
        black = np.zeros((1, 1, 3), np.uint8)
        return list(self([c if np.size(c) else black for c in crops], channels="bgr"))

    def encoder(self, image, tlwh):
        """deep_sort's: unit f32[N,D] of boxes [N,4] (left, top, width, height) of a BGR frame u8[h,w,3]."""
        boxes = np.asarray(tlwh, np.float64).reshape(-1, 4)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        return self.crops(image, corners, channels="bgr")
