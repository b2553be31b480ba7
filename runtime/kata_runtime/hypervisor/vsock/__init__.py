"""The guest's vsock on the host: the kernel's, or a vhost-user device of ours."""
