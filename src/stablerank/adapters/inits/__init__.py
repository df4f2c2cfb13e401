"""Where a difference starts: one initialiser a file, each giving the first factors of a weight."""
