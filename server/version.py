"""The version of the program, in the one place that has it: the package, the images and the API take it from here."""

VERSION = "0.1.0"
