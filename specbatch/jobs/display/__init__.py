"""How numbers and a running job look on a terminal."""
