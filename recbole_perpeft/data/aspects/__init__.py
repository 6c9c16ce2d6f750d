"""The bundled data set, drawn so that the truth about its users is known."""
