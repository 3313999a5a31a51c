"""Embedded tasks: small cases with a checkable answer, so that a falling loss can be held against a score."""
