"""One family of activations a file: the formula, and the class that holds its parameters."""
