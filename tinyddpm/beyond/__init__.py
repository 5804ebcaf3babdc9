"""Mathematics that is not in this paper: exact answers, coders, later networks."""
