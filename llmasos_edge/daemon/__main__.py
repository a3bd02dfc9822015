"""`python -m llmasos_edge.daemon` is llmasosd."""

from llmasos_edge.daemon.main import main

main()
