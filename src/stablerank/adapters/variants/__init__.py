"""How an update is computed from its factors: one parameterisation a file, as PEFT LoRA variants."""
