"""Parsers of foreign bytes, and inputs that try to break them: `nox -s fuzz`, docs/fuzzing.md."""
