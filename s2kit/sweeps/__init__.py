"""Grids of commands: run, gone on with after any interruption, and put into tables."""
