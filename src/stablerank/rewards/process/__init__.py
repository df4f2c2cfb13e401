"""Process rewards: steps in token space, process reward models, and a deposit on the token that closes each step."""
