"""How it is run: the graph of stages, its store and its executors."""
