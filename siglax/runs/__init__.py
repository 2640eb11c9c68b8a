"""The run folder: how its files are written, and the history of the run's starts."""
