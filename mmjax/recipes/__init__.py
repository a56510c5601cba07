"""Programs that join the verbs of the library: the demo that `make demo` runs."""
