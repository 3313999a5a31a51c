"""What several checks share: what a check is, what a run knows, its examples, its page. No module here is a check."""
