"""The run folder: how its files are written, the history of the run's starts, and who may write
there.
"""
