"""What a product of two factors shows beside its stable rank: its nuclear rank, and the spectra of both factors.

Legend: O output features, I input features, R adapter rank.

Contract: for every update that is a product ``s B A``; other updates have no rows. ``nuclear_rank`` of the product, of
kind ``update``; ``stable_rank`` and ``frobenius`` of A and of B, of kind ``factor``, under the module's name with
``.lora_A`` and ``.lora_B`` behind it. The scale ``s`` belongs to neither factor. Factors are not unique: ``B T`` and
``T^-1 A`` are the same update, so read them beside the product and never alone.

Numerics: fp64 of the factors as they are stored; nulls are those of Gaussian matrices of their shapes.

Cost: O((O + I) R^2) a layer.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor

from stablerank.probes.evaluate import Reading
from stablerank.probes.rows import Moment, geometry_row
from stablerank.probes.updates import NamedUpdate
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.spectral.exact import frobenius_estimates, spectrum, stable_rank_estimates
from stablerank.spectral.nulls import NO_NULL, dense_null
from stablerank.spectral.operators import Dense, Factored
from stablerank.spectral.spectrum_metrics import spectrum_metric
from stablerank.spectral.spectrum_nulls import spectrum_null


def measure_factors(updates: Iterable[NamedUpdate], *, run: str, seed: int, step: int) -> list[GeometryRow]:
    """Five rows a factored update, in the order of ``updates``."""
    moment = Moment(run, seed, step)
    return [row for update in updates for row in _update_rows(update.name, update.operator, moment)]


def _update_rows(name: str, operator: object, moment: Moment) -> Iterator[GeometryRow]:
    if not isinstance(operator, Factored):
        return
    nuclear = Reading(
        "nuclear_rank",
        spectrum_metric("nuclear_rank", spectrum(operator)),
        spectrum_null("nuclear_rank", *operator.shape, operator.b_OR.shape[1]),
    )
    yield geometry_row(name, "update", nuclear.metric, nuclear.estimate, nuclear.null, moment)
    for factor, matrix in (("lora_A", operator.a_RI), ("lora_B", operator.b_OR)):
        for reading in _factor_readings(matrix.detach()):
            yield geometry_row(f"{name}.{factor}", "factor", reading.metric, reading.estimate, reading.null, moment)


def _factor_readings(matrix: Tensor) -> tuple[Reading, Reading]:
    spectra = spectrum(Dense(matrix))
    (rank,), (norm,) = stable_rank_estimates(spectra), frobenius_estimates(spectra)
    rows, columns = matrix.shape
    return Reading("stable_rank", rank, dense_null(rows, columns)), Reading("frobenius", norm, NO_NULL)
