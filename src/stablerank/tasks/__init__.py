"""Tasks: where prompts and gold answers come from. One task a file."""
