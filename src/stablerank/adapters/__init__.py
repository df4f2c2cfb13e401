"""What is trained: one spec a method, one contract for all."""
