"""From a raw row to what it means: a file for each family of formats, and the messages that most of them hold."""
