"""Best-of-N: what picking by a score buys, from one pool of answers a problem."""
