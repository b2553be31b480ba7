"""L1: a guest that is a host. Its (emulated) CPU has SVM, so that KVM and vhost-vsock in it are the kernel's real ones.

docs/nested.md tells how it is used; `python -m support.l1` is what `nox -s nested` runs.
"""
