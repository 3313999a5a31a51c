"""Local pages for both wings: a server on loopback behind a token, and one Gradio page that runs a script of ours."""
