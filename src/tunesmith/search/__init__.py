"""`tunesmith search`: settings found by training, within a budget counted in runs."""
