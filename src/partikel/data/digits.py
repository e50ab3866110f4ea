"""Handwritten digits, 8 x 8, that come with scikit-learn: images without a download.

1,797 grey images with values 0, ..., 16 (the test part of the "Optical Recognition of Handwritten
Digits" set, Alpaydin & Kaynak 1998, UCI repository).
"""

from __future__ import annotations

import torch

from partikel.data.base import FiniteDataset, split_indices
from partikel.data.settings import DataSettings

TEST_SHARE = 0.2
"""Share of all digits that is kept for testing."""


def digits(settings: DataSettings) -> FiniteDataset:
    """The digits as images (1, 8, 8), labelled 0, ..., 9.

    The test split depends on the seed only; validation is cut from what it leaves.
    """
    from sklearn.datasets import load_digits

    rows, names = load_digits(return_X_y=True)
    images = torch.as_tensor(rows).to(torch.uint8).view(-1, 1, 8, 8)
    labels = torch.as_tensor(names).to(torch.uint8)
    shares = {"test": TEST_SHARE, "validation": settings.validation * (1 - TEST_SHARE)}
    parts = split_indices(len(images), shares, settings.split_seed)
    return FiniteDataset(
        "digits",
        {split: images[index] for split, index in parts.items()},
        {split: labels[index] for split, index in parts.items()},
        top=16,
        classes=10,
        flip=settings.flip,
    )
