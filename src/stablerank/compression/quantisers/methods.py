"""Which algorithm a method's name stands for."""

from stablerank.compression.quantisers.base import Quantiser
from stablerank.compression.quantisers.kmeans import KMeans
from stablerank.compression.quantisers.normal_float import NormalFloat
from stablerank.compression.quantisers.uniform import Affine, Symmetric

QUANTISERS: dict[str, Quantiser] = {
    "kmeans": KMeans(),
    "affine": Affine(),
    "symmetric": Symmetric(),
    "nf4": NormalFloat(),
}
