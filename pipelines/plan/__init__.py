"""`vast plan`: what a run has to do, and how long machines take for it."""
