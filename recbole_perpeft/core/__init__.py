"""What knows nothing of recommenders: settings, errors, digests, files that appear whole."""
