"""Fields of samples: what compares a cloud of particles with real samples."""

from partikel.fields.samples.dmmd import DeepMMDField
from partikel.fields.samples.drift import DriftField
from partikel.fields.samples.mmd import MMDField
from partikel.fields.samples.stein import SteinField
from partikel.fields.samples.transport import SinkhornField, SlicedWassersteinField

__all__ = [
    "DeepMMDField",
    "DriftField",
    "MMDField",
    "SinkhornField",
    "SlicedWassersteinField",
    "SteinField",
]
