"""Chat templates: those with a name, what each does with a conversation, and the sandbox that all Jinja runs in."""
