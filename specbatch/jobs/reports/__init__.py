"""Reports from manifests: one model, in the forms of terminal, JSON, Markdown, CSV and HTML."""
