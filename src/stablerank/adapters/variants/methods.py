"""Which parameterisation a method's name stands for."""

from stablerank.adapters.inits.methods import INITS
from stablerank.adapters.variants.base import SpectralVariant
from stablerank.adapters.variants.difference import DifferenceVariant
from stablerank.adapters.variants.polar import PolarVariant
from stablerank.adapters.variants.sine import SineVariant

VARIANTS: dict[str, type[SpectralVariant]] = {
    **dict.fromkeys(INITS, DifferenceVariant),
    "polar": PolarVariant,
    "sinelora": SineVariant,
}
"""The method in a configuration's ``spectral`` field, and the variant that computes it."""
