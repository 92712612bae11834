"""What both sides use: errors, files, storage, compiled code, chance."""
