"""The papers' tables as grids of recipes; `fairvlm experiment NAME` runs one."""
