"""Draw fundus-like photographs: a retina, vessels, and an optic disc with its cup, whole batches at a time."""

from __future__ import annotations

import numpy as np

# Linear RGB in 0..1; chosen by eye, so that the disc stands out from the retina and the cup from the disc.
RETINA = (0.62, 0.27, 0.12)
RIM = (0.88, 0.56, 0.30)
CUP = (1.00, 0.88, 0.66)
VESSEL = (0.42, 0.10, 0.07)
MARKER = (0.55, 0.95, 0.80)
BACKGROUND = 0.02
RETINA_RADIUS = 0.49
VESSELS = 3


def draw_fundus(
    rng: np.random.Generator,
    *,
    cup_to_disc: np.ndarray,
    disc_radius: np.ndarray | None = None,
    disc_centre: np.ndarray | None = None,
    brightness: np.ndarray | None = None,
    warmth: np.ndarray | None = None,
    right_eye: np.ndarray | None = None,
    marker: np.ndarray | None = None,
    size: int = 64,
) -> np.ndarray:
    """Draw n fundus-like photographs.

    Lengths are fractions of the picture's side, positions run from (0, 0) at the upper left to (1, 1). What is not
    given is drawn from `rng` as nuisance; the vessels' shape, the uneven light and the sensor's noise always are.

    Args:
        rng: the source of everything that is not given.
        cup_to_disc: vertical diameter of the cup over that of the disc, [n], in 0..1.
        disc_radius: vertical radius of the optic disc, [n]; by default about a quarter of the side.
        disc_centre: x and y of the disc, [n, 2]; by default near the middle.
        brightness: factor on the light of the retina, [n]; 1 is neutral.
        warmth: from -1 (bluish) to 1 (reddish), [n].
        right_eye: whether the fovea lies to the left of the disc, as in a photograph of a right eye, bool [n].
        marker: whether a small bright tag stands in the lower left corner, bool [n]; by default none does.
        size: side of the picture in pixels.

    Returns:
        uint8 [n, size, size, 3].
    """
    cup_to_disc = np.asarray(cup_to_disc, dtype=np.float32)
    n = len(cup_to_disc)

    def given(values: np.ndarray | None, low: float, high: float, shape: tuple[int, ...] = (n,)) -> np.ndarray:
        # Drawn even when given: fixing one property must not change the others.
        drawn = rng.uniform(low, high, shape)
        return (drawn if values is None else np.asarray(values)).astype(np.float32)

    radius = given(disc_radius, 0.22, 0.27)
    centre = given(disc_centre, 0.45, 0.55, (n, 2))
    light = given(brightness, 0.85, 1.15)
    colour = given(warmth, -1, 1)
    side = np.where(given(right_eye, 0, 1) > 0.5, 1, -1).astype(np.float32)
    tagged = np.zeros(n, bool) if marker is None else np.asarray(marker, dtype=bool)

    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = axis[None, :, None], axis[None, None, :]
    dx, dy = x - _each(centre[:, 0]), y - _each(centre[:, 1])
    soft = np.float32(1.2 / size)  # edges fade over about a pixel, so that sub-pixel sizes can be seen

    retina = _inside(np.hypot(x - 0.5, y - 0.5) - RETINA_RADIUS, soft)
    disc = _inside(_ellipse(dx, dy, radius, rng.uniform(0.88, 1.0, n)), soft)
    # A cup touches neither the middle of its disc nor its edge exactly: it is shifted within the rim that is left.
    shift = (rng.uniform(-0.3, 0.3, (n, 2)) * (radius * (1 - cup_to_disc))[:, None]).astype(np.float32)
    cup_dx, cup_dy = dx - _each(shift[:, 0]), dy - _each(shift[:, 1])
    cup = _inside(_ellipse(cup_dx, cup_dy, radius * cup_to_disc, rng.uniform(0.85, 1.0, n)), soft)

    picture = np.empty((n, size, size, 3), np.float32)
    picture[:] = RETINA
    fovea = np.exp(-((dx + _each(side * 0.34)) ** 2 + dy**2) / 0.006)
    picture *= 1 - 0.45 * fovea[..., None]
    _blend(picture, RIM, disc)
    _blend(picture, CUP, cup * _each(rng.uniform(0.8, 1.0, n)))
    _blend(picture, VESSEL, _vessels(rng, dx, dy, side, soft) * (1 - 0.55 * disc))

    tilt = rng.uniform(-0.35, 0.35, (2, n)).astype(np.float32)
    shade = _each(light) * (1 + _each(tilt[0]) * (x - 0.5) + _each(tilt[1]) * (y - 0.5))
    shade = shade * (1 - 0.6 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))
    cast = 1 + 0.12 * colour[:, None] * np.asarray([1.0, 0.0, -1.0], np.float32)
    picture *= shade[..., None] * cast[:, None, None, :]
    picture *= retina[..., None]
    picture += BACKGROUND
    _blend(picture, MARKER, _marker(x, y, soft) * _each(tagged.astype(np.float32)))
    picture += rng.normal(0, 0.025, picture.shape).astype(np.float32)
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


def _each(values: np.ndarray) -> np.ndarray:
    """One value per picture, [n] -> float32 [n, 1, 1]."""
    return np.asarray(values, dtype=np.float32)[:, None, None]


def _inside(distance: np.ndarray, soft: np.float32) -> np.ndarray:
    """1 where the signed distance is negative, 0 where it is positive, fading over `soft`."""
    return np.clip(0.5 - distance / (2 * soft), 0, 1)


def _ellipse(dx: np.ndarray, dy: np.ndarray, vertical: np.ndarray, aspect: np.ndarray) -> np.ndarray:
    """About the signed distance to an ellipse with the vertical radius [n] and the aspect width / height [n]."""
    return np.hypot(dx / _each(aspect), dy) - _each(vertical)


def _vessels(
    rng: np.random.Generator, dx: np.ndarray, dy: np.ndarray, side: np.ndarray, soft: np.float32
) -> np.ndarray:
    """Arcades that leave the disc upwards and downwards: tilted parabolas through its centre, [n, size, size]."""
    n = len(dx)
    drawn = np.zeros((n, *np.broadcast_shapes(dx.shape[1:], dy.shape[1:])), np.float32)
    for k in range(VESSELS):
        turn = rng.uniform(-0.25, 0.25, n)
        cos, sin = _each(np.cos(turn)), _each(np.sin(turn))
        across, along = cos * dx + sin * dy, cos * dy - sin * dx
        # The last one runs to the nasal side, the others frame the fovea.
        bend = _each(side * rng.uniform(0.5, 2.2, n) * (-1 if k < VESSELS - 1 else 1))
        slope = 2 * bend * along
        distance = np.abs(across - bend * along**2) / np.sqrt(1 + slope**2)
        width = _each(rng.uniform(0.008, 0.016, n)) * np.clip(1.3 - np.abs(along) * 1.6, 0.3, 1)
        np.maximum(drawn, _inside(distance - width, soft), out=drawn)
    return drawn * 0.8


def _marker(x: np.ndarray, y: np.ndarray, soft: np.float32) -> np.ndarray:
    return _inside(np.maximum(np.abs(x - 0.08), np.abs(y - 0.92)) - 0.045, soft)


def _blend(picture: np.ndarray, colour: tuple[float, float, float], amount: np.ndarray) -> None:
    """Paint `colour` over the picture [n, size, size, 3] in place, `amount` [n, size, size] being its opacity."""
    for channel, value in enumerate(colour):
        plane = picture[..., channel]
        plane += amount * (value - plane)
