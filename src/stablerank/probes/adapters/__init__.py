"""PEFT adapters on disk: the update of every matrix that one changes, by adapter type."""
