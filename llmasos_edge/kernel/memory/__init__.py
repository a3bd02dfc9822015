"""Memory: the ledger of bytes, the arena of parked state, and where models are."""
