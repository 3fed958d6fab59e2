"""Many runs to one honest table: a study's grid, its cells, what was measured, statistics, report."""
