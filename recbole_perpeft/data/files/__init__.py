"""Readers of files in which people keep logs and items: rows, columns and what is wrong with a cell of theirs."""
