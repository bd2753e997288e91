"""One student, one budget: the lines of `vitutor compare`, what they cost, and how they are trained and compared."""
