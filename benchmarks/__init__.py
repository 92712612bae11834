"""Scripts that measure; reports/ holds what they found."""
