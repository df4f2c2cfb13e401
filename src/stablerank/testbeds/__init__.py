"""Small exact worlds in which the claims of the theory can be seen, or seen to fail."""
