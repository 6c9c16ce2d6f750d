"""Converters: data sets of the papers, and anybody's own logs, as RecBole's atomic files with titles and images.

`recbole-perpeft convert <source> --input=... --output=dataset_atomic/<name>`; docs/data.md tells what
to download and which flags to use.
"""
