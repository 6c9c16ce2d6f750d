"""One program, `recbole-perpeft <verb>`: `main` finds the verb and tells errors, every verb is a module."""
