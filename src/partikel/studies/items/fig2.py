"""GPM Figure 2: uncurated samples of EDM, Discriminator Flow, GAN and Score GAN.

Sheets of 8x8 samples from the same random numbers, beside test images. What a sheet shows is
counted: how many of its images a classifier is sure of, and which classes appear.
"""

from __future__ import annotations

from partikel.studies.benches import benches
from partikel.studies.item import Item, Outcome
from partikel.studies.lab import Lab
from partikel.studies.sheets import Plan, claims, outcome

CLAIMS = claims("GPM §4.3, Figure 2")


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Draw and read the sheets."""
    caption = "test images, and uncurated samples of the four models (one seed)."
    return outcome(plan, lab, CLAIMS, caption, beside=True)


ITEM = Item(
    "fig2",
    "GPM Figure 2, §4.3",
    "Uncurated samples of the four models",
    "Uncurated samples of EDM, GAN, Discriminator Flow and Score GAN on CelebA and MNIST, from which "
    "the paper concludes that both introduced models produce reasonable results.",
    {
        "smoke": Plan(benches("smoke", "digits"), 36),
        "cpu": Plan(benches("cpu", "digits", "mnist"), 64),
        "paper": Plan(benches("paper", "mnist", "celeba"), 64),
    },
    measure,
    CLAIMS,
)
