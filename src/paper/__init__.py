"""The reproduction of the paper: a DVC pipeline of notebooks on top of the library `multishield`."""
