"""Can a little training repair it? WeightEdit to WeightEdit."""
