"""The engine: localize the vulnerable block of a trained network, repair it, prove it. Start at `repair.py`."""
