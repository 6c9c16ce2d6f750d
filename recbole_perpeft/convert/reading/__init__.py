"""Files of others, read line by line, and pickles and archives that can do no harm."""
