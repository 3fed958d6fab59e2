"""From a source (a file, a folder, the hub, Python) to raw rows, each with the place that it came from."""
