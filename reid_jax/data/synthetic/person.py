"""What makes a synthetic person: body, hair, garments, bag and habits, drawn once per identity."""

from dataclasses import dataclass

import numpy as np

_PERSON, _STRANGER = 1, 4  # names of random streams
# Fifteen garment colours: few enough that identities share them and a network must look closer.
PALETTE = {
    "black": (0.09, 0.09, 0.10),
    "charcoal": (0.25, 0.26, 0.28),
    "grey": (0.50, 0.51, 0.52),
    "white": (0.90, 0.90, 0.88),
    "navy": (0.11, 0.15, 0.31),
    "blue": (0.17, 0.34, 0.64),
    "sky": (0.54, 0.69, 0.83),
    "red": (0.69, 0.12, 0.13),
    "wine": (0.38, 0.09, 0.16),
    "pink": (0.85, 0.54, 0.62),
    "green": (0.15, 0.41, 0.24),
    "olive": (0.36, 0.37, 0.21),
    "beige": (0.75, 0.66, 0.51),
    "brown": (0.37, 0.24, 0.15),
    "yellow": (0.85, 0.69, 0.18),
}
_GARMENTS = np.array(list(PALETTE.values()), np.float32)
_LOWER = ("black", "charcoal", "grey", "navy", "blue", "sky", "olive", "beige", "brown", "white", "wine")
_SHOES = ((0.08, 0.08, 0.09), (0.88, 0.88, 0.86), (0.30, 0.19, 0.11), (0.45, 0.46, 0.48), (0.66, 0.12, 0.13))
_SKIN = ((0.93, 0.76, 0.65), (0.86, 0.67, 0.54), (0.76, 0.56, 0.42), (0.58, 0.40, 0.28), (0.38, 0.25, 0.18))
_HAIR = (
    (0.06, 0.05, 0.05),
    (0.13, 0.09, 0.07),
    (0.27, 0.17, 0.10),
    (0.68, 0.53, 0.31),
    (0.56, 0.55, 0.54),
    (0.42, 0.17, 0.08),
)


@dataclass(frozen=True)
class Person:
    """An identity. Colours are (r, g, b) floats in 0..1; lengths are factors of the average body."""

    height: float
    build: float  # girth of trunk and limbs
    shoulders: float
    hips: float
    legs: float  # share of the body height below the hip
    head: float
    skin: tuple
    hair: tuple
    hair_style: str  # short | crop | bald | bob | long | ponytail | bun
    hat: str  # none | peaked | beanie
    hat_colour: tuple
    beard: float
    glasses: bool
    upper: str  # tee | shirt | jacket | hoodie | coat | dress
    upper_colour: tuple
    second_colour: tuple
    pattern: str  # plain | stripes | checks | print | block | sleeves | open
    sleeve: float  # share of the arm that is covered
    lower: str  # trousers | shorts | skirt
    lower_colour: tuple
    lower_width: float
    shoe_colour: tuple
    sole_colour: tuple
    scarf: tuple | None
    bag: str  # none | backpack | shoulder | hand
    bag_colour: tuple
    side: int  # the side a bag hangs on: -1 or 1
    arms: str  # swing | pocket | phone
    stride: float
    bend: float  # how far the back is bent, radians


def _pick(rng, options, weights=None):
    weights = None if weights is None else np.asarray(weights, float) / np.sum(weights)
    return options[int(rng.choice(len(options), p=weights))]


def _tint(rng, colour, spread=0.015):
    return tuple(float(np.clip(c + rng.uniform(-spread, spread), 0.03, 0.95)) for c in colour)


def _garment(rng, names=None):
    colours = _GARMENTS if names is None else [PALETTE[name] for name in names]
    return _tint(rng, colours[int(rng.integers(len(colours)))])


def _head(rng, woman):
    styles = ("short", "crop", "bald", "bob", "long", "ponytail", "bun")
    weights = (0.06, 0.02, 0, 0.2, 0.36, 0.22, 0.14) if woman else (0.62, 0.2, 0.1, 0.04, 0.04, 0, 0)
    return dict(
        skin=_tint(rng, _pick(rng, _SKIN, (3, 4, 3, 2, 1.5))),
        hair=_tint(rng, _pick(rng, _HAIR, (4, 4, 3, 2, 1.2, 0.8))),
        hair_style=_pick(rng, styles, weights),
        hat=_pick(rng, ("none", "peaked", "beanie"), (0.82, 0.1, 0.08)),
        hat_colour=_garment(rng),
        beard=0.0 if woman or rng.random() < 0.7 else float(rng.uniform(0.4, 0.9)),
        glasses=bool(rng.random() < 0.2),
    )


def _body(rng, woman):
    return dict(
        height=float(np.clip(rng.normal(0.965 if woman else 1.02, 0.035), 0.88, 1.09)),
        build=float(np.clip(rng.normal(0.94 if woman else 1.02, 0.11), 0.78, 1.36)),
        shoulders=float(rng.normal(0.92 if woman else 1.04, 0.04)),
        hips=float(rng.normal(1.04 if woman else 0.95, 0.05)),
        legs=float(rng.normal(1.0, 0.02)),
        head=float(rng.normal(1.0, 0.03)),
    )


def _clothes(rng, woman):
    kinds = ("tee", "shirt", "jacket", "hoodie", "coat", "dress")
    upper = _pick(rng, kinds, (3, 2, 3, 2, 1.6, 1.4) if woman else (3, 2, 3, 2.2, 1.2, 0))
    patterns = dict(
        tee=("plain", "stripes", "print", "block", "sleeves"),
        shirt=("plain", "checks", "stripes"),
        jacket=("plain", "open", "block", "sleeves"),
        hoodie=("plain", "print", "block"),
        coat=("plain", "open", "plain"),
        dress=("plain", "stripes", "checks", "block"),
    )[upper]
    sleeve = rng.uniform(0.3, 0.46) if upper == "tee" or (upper == "dress" and rng.random() < 0.6) else 1.0
    lower = _pick(rng, ("trousers", "shorts", "skirt"), (6, 1, 2) if woman else (6, 1.6, 0))
    return dict(
        upper=upper,
        upper_colour=_garment(rng),
        second_colour=_garment(rng),
        pattern=_pick(rng, patterns),
        sleeve=float(sleeve if upper != "shirt" or rng.random() < 0.6 else rng.uniform(0.4, 0.7)),
        lower=lower,
        lower_colour=_garment(rng, _LOWER),
        lower_width=float(rng.uniform(0.86, 1.3)),
        shoe_colour=_tint(rng, _pick(rng, _SHOES)),
        sole_colour=_pick(rng, ((0.07, 0.07, 0.07), (0.85, 0.85, 0.83))),
        scarf=_garment(rng) if upper in ("jacket", "coat") and rng.random() < 0.35 else None,
    )


def draw_person(rng):
    """A random identity from `rng` (numpy Generator)."""
    woman = rng.random() < 0.5
    bag = _pick(rng, ("none", "backpack", "shoulder", "hand"), (5, 2.4, 2, 1.6))
    return Person(
        **_body(rng, woman),
        **_head(rng, woman),
        **_clothes(rng, woman),
        bag=bag,
        bag_colour=_garment(rng),
        side=int(_pick(rng, (-1, 1))),
        arms=_pick(rng, ("swing", "pocket", "phone"), (7, 1.2, 1)),
        stride=float(rng.uniform(0.8, 1.12)),
        bend=float(rng.normal(0.04, 0.03)),
    )


def person_of(seed, pid, n=0):
    """The identity `pid` of the set of a seed; of pid 0 and -1 (distractors, junk) stranger number `n`.

    None for every third distractor: an empty place that a detector took for a person.
    """
    if pid > 0:
        return draw_person(np.random.default_rng([seed, _PERSON, pid]))
    if pid == 0 and n % 3 == 2:
        return None
    return draw_person(np.random.default_rng([seed, _STRANGER, 1 - pid, n]))
