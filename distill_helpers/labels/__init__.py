"""What a teacher gives, on disk: its words and its distributions."""
