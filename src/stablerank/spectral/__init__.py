"""Spectra and what is read from them: functionals, operators, nulls. Torch only; knows nothing of models."""
