"""The dynamics of a run, read from its rows: signals, alarms, onsets, causes. Pure rules, no files, no models."""
