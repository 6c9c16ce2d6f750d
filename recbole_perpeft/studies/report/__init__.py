"""What reports of comparisons and searches share."""
