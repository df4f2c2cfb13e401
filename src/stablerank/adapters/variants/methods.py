"""Which parameterisation a method's name stands for."""

from stablerank.adapters.inits.methods import INITS
from stablerank.adapters.variants.base import SpectralVariant
from stablerank.adapters.variants.difference import DifferenceVariant

VARIANTS: dict[str, type[SpectralVariant]] = {**dict.fromkeys(INITS, DifferenceVariant)}
"""The method in a configuration's ``spectral`` field, and the variant that computes it."""
