"""Generated protocol stubs; nothing in this package is written by hand. Regenerate with `nox -s protos`."""
