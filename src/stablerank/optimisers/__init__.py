"""Steps that respect geometry: the landing field of orthonormal factors."""
