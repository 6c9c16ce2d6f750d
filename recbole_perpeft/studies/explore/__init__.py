"""What each group looks at: a page about a trained model of groups."""
