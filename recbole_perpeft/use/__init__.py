"""What is done with a finished run: lists, explanations, exports."""
