"""What gateway and worker share: rows, the job state machine, and how to reach database, store and broker."""
