"""`vast report`: the story of a run, an evaluation or a campaign on one page that needs nothing else."""
