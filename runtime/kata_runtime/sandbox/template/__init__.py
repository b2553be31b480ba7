"""Templates: a guest that has booted and been rehearsed once, saved, and cloned for each start."""
