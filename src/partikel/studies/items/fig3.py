"""GPM Figure 3: additional uncurated samples of the four models.

As Figure 2, on larger sheets: rarer failures show, and shares are known better.
"""

from __future__ import annotations

from partikel.studies.benches import benches
from partikel.studies.item import Item, Outcome
from partikel.studies.lab import Lab
from partikel.studies.sheets import Plan, claims, outcome

CLAIMS = claims("GPM §4.3, §C.1, Figure 3")


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Draw and read the sheets."""
    caption = f"{plan.samples} uncurated samples of each model (one seed)."
    return outcome(plan, lab, CLAIMS, caption, columns=2, inches=4.6)


ITEM = Item(
    "fig3",
    "GPM Figure 3, §C.1",
    "Additional samples of the four models",
    "Additional uncurated samples of the four models, trained on CelebA and MNIST.",
    {
        "smoke": Plan(benches("smoke", "digits"), 49),
        "cpu": Plan(benches("cpu", "digits", "mnist"), 196),
        "paper": Plan(benches("paper", "mnist", "celeba"), 196),
    },
    measure,
    CLAIMS,
)
