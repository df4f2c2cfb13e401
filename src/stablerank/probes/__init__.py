"""Probes turn a model into geometry rows. One source of matrices a file."""
