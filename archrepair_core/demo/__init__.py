"""A fault to try the service on, without any data of one's own: handwritten digits behind an out-of-focus lens."""
