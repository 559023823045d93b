"""Generated pictures with captions for pretraining the tiny base models: nested ellipses, described by their geometry.

They are unrelated to any cohort: no patient, no diagnosis, no demographics. What a model learns from them (what a disc
is, how wide its centre, where it lies, to answer yes or no) is what a base model knows before it sees medicine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GROUNDS = {"red": (150, 60, 40), "brown": (110, 80, 55), "grey": (105, 105, 110), "green": (60, 110, 70)}
SIDES = ("left", "middle", "right")


@dataclass(frozen=True)
class Picture:
    """What a picture shows, in words: the facts that captions and questions are made from."""

    ground: str
    side: str
    large: bool
    wide: bool
    marked: bool

    @property
    def caption(self) -> str:
        size = "large" if self.large else "small"
        centre = "wide" if self.wide else "narrow"
        mark = "with a mark" if self.marked else "without a mark"
        return f"A {size} disc on the {self.side} with a {centre} centre on {self.ground} ground {mark}"

    @property
    def answers(self) -> dict[str, bool]:
        """Yes/no questions about the picture and their answers."""
        return {
            "Is the disc large?": self.large,
            "Is the centre wide?": self.wide,
            "Is there a mark?": self.marked,
            f"Is the disc on the {SIDES[0]}?": self.side == SIDES[0],
        }


def draw(count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, list[Picture]]:
    """Draw pictures, uint8 [count, size, size, 3], and say what they show."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / (size - 1)
    names = list(GROUNDS)
    ground = rng.integers(len(names), size=count)
    side = rng.integers(3, size=count)
    large, wide, marked = (rng.random(count) < 0.5 for _ in range(3))
    # The margins between the two kinds are narrow on purpose: a model must measure, not glance.
    radius = np.where(large, rng.uniform(0.24, 0.32, count), rng.uniform(0.14, 0.2, count))
    ratio = np.where(wide, rng.uniform(0.58, 0.85, count), rng.uniform(0.2, 0.45, count))
    centre_x = 0.3 + 0.2 * side + rng.uniform(-0.05, 0.05, count)
    centre_y = rng.uniform(0.38, 0.62, count)
    stretch = rng.uniform(0.85, 1.15, count)

    def column(values: np.ndarray) -> np.ndarray:
        return np.asarray(values, dtype=np.float32).reshape(-1, 1, 1)

    distance = np.hypot((x - column(centre_x)) * column(stretch), y - column(centre_y))
    edge = 40.0

    def inside(radii: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(np.clip((distance - column(radii)) * edge, -30, 30)))

    base = np.array([GROUNDS[name] for name in names], dtype=np.float32)[ground][:, None, None, :]
    image = base * column(rng.uniform(0.8, 1.2, count))[..., None]
    image = (
        image
        + 70 * inside(radius)[..., None]
        + column(rng.uniform(30, 70, count))[..., None] * inside(radius * ratio)[..., None]
    )
    mark = (np.hypot(x - 0.1, y - 0.9) < 0.07).astype(np.float32)
    image = image + 90 * mark[None, :, :, None] * column(marked)[..., None]
    image = image + rng.normal(0, 6, image.shape).astype(np.float32)
    shown = [
        Picture(names[g], SIDES[s], bool(a), bool(w), bool(m))
        for g, s, a, w, m in zip(ground, side, large, wide, marked, strict=True)
    ]
    return np.clip(image, 0, 255).astype(np.uint8), shown
