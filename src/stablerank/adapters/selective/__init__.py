"""Training the model's own parameters in place: all of them, the biases, or masked entries."""
