"""`vast check`: every problem of a run before it costs anything, on this machine and on each node of a cluster."""
