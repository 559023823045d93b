"""Being here, this file puts `tests/` on the path, so that the tests of several parts can share a generator."""
