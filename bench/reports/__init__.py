"""Markdown and pictures of records."""
