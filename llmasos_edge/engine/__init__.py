"""Engines: they compute. A worker process holds a model; the daemon's side of it is host."""
