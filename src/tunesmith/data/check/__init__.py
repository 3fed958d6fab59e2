"""What people see of the rows, in `tunesmith check` and as a run begins: counts, findings, the report, its page."""
