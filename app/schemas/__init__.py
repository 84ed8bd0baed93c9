"""The shapes of bodies, one module per direction."""
