"""A virtio-vsock device in a process of its own, for hosts without the kernel's vhost-vsock.

QEMU is the vhost-user front-end (`-device vhost-user-vsock-pci`); the host's ends of the guest's streams are unix
sockets with the hybrid-vsock convention. One process serves one VM, on one thread. How to start it: `__main__`.

    __main__    command line, signals, exit status
    server      epoll loop; listeners, host sockets, the socket to QEMU: all I/O that is not a packet's own
    frontend    the vhost-user protocol: what QEMU may say, and what it makes of rings and memory
    message     codec of vhost-user messages
    device      packets between the two rings and the connections
    connection  one stream: credit and the rules of closing; no I/O
    ring        a split virtqueue, device side; no I/O
    memory      the guest's RAM as QEMU shares it
    packet      codec of virtio-vsock headers

The guest is hostile: everything read from its memory is read once, checked, and bounded. QEMU is trusted as far as a
wrong message ends the process with a line that says which.
"""
