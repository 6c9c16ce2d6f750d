"""Searches over settings with Ray Tune; `session.run_search` from Python."""
