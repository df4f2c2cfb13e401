"""A smaller file of an adapter: quantisers, entropy coding, the container, and what was lost."""
