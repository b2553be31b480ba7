"""`trace top`: a trace to work in, in the terminal."""
