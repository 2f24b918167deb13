"""AutoAugment's policy for ImageNet (Cubuk et al., CVPR 2019) with torchvision's strengths, by PIL."""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# Pairs of (operation, probability, strength from 0 to 9); one of them is taken
POLICY = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear", 0.6, 5), ("equalize", 1.0, 0)),
    (("color", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)


def changed(image, rng):
    """A PIL image in RGB after one pair of POLICY, drawn from a numpy Generator."""
    for name, probability, strength in POLICY[rng.integers(len(POLICY))]:
        took, sign = rng.random() < probability, rng.choice((-1, 1))
        image = OPERATIONS[name](image, strength / 9, sign) if took else image
    return image


def _enhanced(enhancer):
    return lambda image, share, sign: enhancer(image).enhance(1 + sign * 0.9 * share)


def _rotated(image, share, sign):
    return image.rotate(float(sign * 30 * share))


def _sheared(image, share, sign):
    """Along x, from the upper left corner."""
    return image.transform(image.size, Image.Transform.AFFINE, (1, sign * 0.3 * share, 0, 0, 1, 0))


OPERATIONS = {
    "autocontrast": lambda image, share, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, share, sign: ImageOps.equalize(image),
    "invert": lambda image, share, sign: ImageOps.invert(image),
    "posterize": lambda image, share, sign: ImageOps.posterize(image, int(8 - np.round(4 * share))),
    "solarize": lambda image, share, sign: ImageOps.solarize(image, round(255 * (1 - share))),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "rotate": _rotated,
    "shear": _sheared,
}
