"""How far samples are from the data: which distance items go by, what it is called, and what is noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from partikel.app.runs import Run


@dataclass(frozen=True)
class Distance:
    """A distance of samples to the data.

    Attributes:
        key: of an evaluation's figures.
        name: in words.
        floor: distances below it are not told from the data's: draws of these scatter so much.
    """

    key: str
    name: str
    floor: float


FRECHET = Distance("frechet", "Fréchet distance", 1e-2)
ENERGY = Distance("energy", "energy distance", 5e-4)


@dataclass(frozen=True)
class Evaluated:
    """The runs of one training and what was measured of each, seed by seed.

    Attributes:
        runs: trained.
        rows: of :meth:`partikel.studies.lab.Lab.evaluate`.
    """

    runs: Sequence[Run]
    rows: Sequence[Mapping[str, Any]]

    @property
    def distance(self) -> Distance:
        """What items go by: Fréchet's distance of images, the energy distance of points."""
        return FRECHET if FRECHET.key in self.rows[0]["metrics"] else ENERGY

    @property
    def far(self) -> list[float]:
        """Distances to the data."""
        return self.figures(self.distance.key)

    @property
    def floor(self) -> float:
        """Distance of the data from themselves."""
        return self.rows[0]["reference"][self.distance.key]

    def figures(self, key: str) -> list[float]:
        """Another figure of each run's samples."""
        return [row["metrics"][key] for row in self.rows]
