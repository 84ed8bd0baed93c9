"""A job as a step of a pipeline: run.py is the whole of it."""
